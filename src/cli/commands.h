/* The command line: a table of commands, what they teach with --help, and exit codes (enum status in base/err.h). */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

/* The whole program; returns the exit code. */
int commands_main(int argc, char **argv, const char *version);

#endif
