"""The command line: how options are made from config classes, and the commands."""
