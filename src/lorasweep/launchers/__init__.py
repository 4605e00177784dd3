"""Where workers run. Each launcher is one file with one `launch` function; a group option in conf/launcher names it."""
