"""What varies and who proposes it: the sweep file's space, the samplers, the study. The only owner of Optuna."""
