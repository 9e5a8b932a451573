"""The command line: one file a command, thin over the library. Nothing here imports torch at the top."""
