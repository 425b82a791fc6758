// For node --require: prints what is not its program's, and leaves the last line without an end.
process.stdout.write('a preloaded module\n{"level":"info"}\nsays hello ');
