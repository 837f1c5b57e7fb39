/*
 * options.h - the command line: long options before, between and after the words
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef CBCTL_OPTIONS_H
#define CBCTL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#define OPTIONS_MAX 12 /* of one command, the global ones included */

struct option {
	const char *name; /* without the dashes; NULL ends a table */
	const char *
		value; /* what stands for its value in a message; NULL: it takes none; "=" first: it may have one */
};

/* A command line taken apart. Everything points into argv. */
struct parsed {
	const char *values
		[OPTIONS_MAX]; /* by place in the table; NULL: not given; "" for those without value */
	const char **words;    /* what is no option, NULL-terminated, to be freed */
	int count;
};

/*
 * Parses argv. "--" ends the options; what looks like a negative number is a word. False: *message says
 * what is wrong.
 */
bool options_parse(int argc, char **argv, const struct option *options, struct parsed *parsed,
		   char *message, size_t size);

/* Whether --NAME stands among the options, whatever else is wrong with them. */
bool options_has(int argc, char **argv, const char *name);

#endif /* CBCTL_OPTIONS_H */
