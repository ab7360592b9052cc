"""The command line: one file a command. Commands parse options, call the library and print."""
