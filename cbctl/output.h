/*
 * output.h - everything cbctl prints: for people, or one JSON document
 *
 * SPDX-License-Identifier: ISC
 *
 * Texts from outside (names, reasons, messages of servers) go through clean() on their way to a person, so that none
 * of them can send control sequences to a terminal.
 */
#ifndef CBCTL_OUTPUT_H
#define CBCTL_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "cbctl/cbctl.h"

/*
 * Before anything is printed, and at the end, which returns the exit status: another one if stdout
 * could not be written.
 */
void output_begin(bool json);
int output_end(int status);

/* Frees all strings that "live until output_end()": for a command that goes on printing for hours. */
void output_forget(void);

/* Whether --json was given. */
bool output_is_json(void);

/*
 * The text with everything escaped that is not printable: control characters, invalid UTF-8, and the characters that
 * reorder or hide others. Lives until output_end(). NULL becomes "".
 */
const char *clean(const char *text);

/* Formatted, lives until output_end(). Does not clean. */
const char *formatted(const char *format, ...) __attribute__((format(printf, 1, 2)));

enum colour { COLOUR_GOOD, COLOUR_BAD, COLOUR_DIM };

/* The text in a colour, if stdout is a terminal that shall have any. Lives until output_end(). */
const char *coloured(enum colour colour, const char *text);

/* "2030-01-31 19:00:00 CET (in 3 h)", "... (3 h ago)". Lives until output_end(). */
const char *time_and_distance(int64_t microseconds);

/* The columns of a terminal that a cleaned text takes: a wide character has two, one that combines none. */
int width(const char *text);

/* A cleaned text, cut to so many columns; it then ends in "...". Lives until output_end(). */
const char *fitted(const char *text, int columns);

/* "cbctl check NAME". Lives until output_end(). */
const char *command_usage(const struct command *command);

/*
 * Says what went wrong: "cbctl: ..." on stderr, or {"error", "message"} on stdout. Returns `status`.
 * fail_usage() points to the help as well; command NULL: to the general one.
 */
int fail(int status, const char *error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
int fail_usage(const struct command *command, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* The same for an error of the library; `call` may be NULL. */
int fail_library(int error, const struct cbshm_call *call);

/* The word for an error of the library in JSON, and the exit status. */
const char *error_word(int error);
int error_status(int error);

/* Whether there is a person to be asked: standard input and standard error are terminals. */
bool can_ask(void);

/* Asks on stderr; true only for a clear yes. */
bool ask(const char *question);

/* A line on stderr: "cbctl: warning: ...". */
void warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- JSON ------------------------------------------------------------------------------- */

/* Adds; NULL and CBSHM_NO_TIME become null. Out of memory ends the program. */
void json_text(cJSON *object, const char *name, const char *text);
void json_time(cJSON *object, const char *name, int64_t microseconds);
void json_bool(cJSON *object, const char *name, bool value);
void json_whole(cJSON *object, const char *name, int64_t value);
void json_number(cJSON *object, const char *name, double value);
cJSON *json_object(cJSON *parent,
		   const char *name); /* parent may be NULL, or an array with name NULL */
cJSON *json_array(cJSON *parent, const char *name);

/* The policy's fields. */
void json_policy(cJSON *object, const struct cbshm_policy *policy);

/* Prints the document on one line and deletes it. */
void json_print(cJSON *document);

#endif /* CBCTL_OUTPUT_H */
