/*
 * options.c - takes a command line apart
 *
 * SPDX-License-Identifier: ISC
 *
 * Not getopt_long(): that takes every word with a dash for an option, a negative score too, accepts abbreviations,
 * which a script must not rely on, and has no idea what was meant.
 */
#include "config.h"

#include "cbctl/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cbctl/output.h"
#include "cbctl/suggest.h"

static bool is_option(const char *word)
{
	return word[0] == '-' && word[1] != '\0' && strchr("0123456789.", word[1]) == NULL;
}

/* The place in the table, or -1. `length`: without "=VALUE". */
static int find(const struct option *options, const char *name, size_t length)
{
	for (int i = 0; options[i].name != NULL; i++) {
		if (strlen(options[i].name) == length && memcmp(options[i].name, name, length) == 0)
			return i;
	}
	return -1;
}

static bool unknown(const struct option *options, const char *word, char *message, size_t size)
{
	struct suggestion near;

	suggestion_begin(&near, word + strspn(word, "-"));
	for (int i = 0; options[i].name != NULL; i++)
		suggestion_consider(&near, options[i].name);
	if (near.best[0] != '\0')
		snprintf(message, size, "unknown option %s; did you mean --%s?", clean(word),
			 near.best);
	else
		snprintf(message, size, "unknown option %s", clean(word));
	return false;
}

/* One option; *used becomes 2 if its value is the next word. */
static bool take(const struct option *options, const char *word, const char *next,
		 struct parsed *parsed, int *used, char *message, size_t size)
{
	const char *name = strcmp(word, "-h") == 0 ? "help" : word + 2;
	const char *equals = strchr(name, '=');
	const size_t length = equals != NULL ? (size_t)(equals - name) : strlen(name);
	const int i = word[1] == '-' || strcmp(word, "-h") == 0 ? find(options, name, length) : -1;

	*used = 1;
	if (i < 0)
		return unknown(options, word, message, size);
	if (parsed->values[i] != NULL && options[i].value != NULL) {
		snprintf(message, size, "--%s is given twice", options[i].name);
		return false;
	}
	if (options[i].value == NULL && equals != NULL) {
		snprintf(message, size, "--%s takes no value", options[i].name);
		return false;
	}
	if (options[i].value == NULL) {
		parsed->values[i] = "";
	} else if (equals != NULL) {
		parsed->values[i] = equals + 1;
	} else if (options[i].value[0] == '=') {
		parsed->values[i] = "";
	} else if (next != NULL && !(next[0] == '-' && next[1] == '-')) {
		parsed->values[i] = next;
		*used = 2;
	} else {
		snprintf(message, size, "--%s needs a value: --%s %s", options[i].name,
			 options[i].name, options[i].value);
		return false;
	}
	return true;
}

bool options_parse(int argc, char **argv, const struct option *options, struct parsed *parsed,
		   char *message, size_t size)
{
	bool ended = false;
	int used = 1;

	memset(parsed, 0, sizeof(*parsed));
	parsed->words = calloc((size_t)argc + 1, sizeof(*parsed->words));
	if (parsed->words == NULL) {
		snprintf(message, size, "out of memory");
		return false;
	}
	for (int i = 0; i < argc; i += used) {
		used = 1;
		if (!ended && strcmp(argv[i], "--") == 0)
			ended = true;
		else if (ended || !is_option(argv[i]))
			parsed->words[parsed->count++] = argv[i];
		else if (!take(options, argv[i], i + 1 < argc ? argv[i + 1] : NULL, parsed, &used,
			       message, size))
			return false;
	}
	return true;
}

bool options_has(int argc, char **argv, const char *name)
{
	for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strncmp(argv[i], "--", 2) == 0 && strcmp(argv[i] + 2, name) == 0)
			return true;
	}
	return false;
}
