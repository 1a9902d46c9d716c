"""The command line, a file a family of commands: `app`, `training`, `hub`, `spectra`, `doctor`, `terminal`."""
