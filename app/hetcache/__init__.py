"""What a person runs: the command line, video files, metrics and reports."""
