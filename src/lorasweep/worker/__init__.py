"""What trains: the loop, the trials in its slots, what becomes of them, and what a restart replays."""
