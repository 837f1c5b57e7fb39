/*
 * output.c - prints for people and for programs
 *
 * SPDX-License-Identifier: ISC
 *
 * Decides nothing: what is to be said comes from the commands. The strings that it hands out live until
 * the program ends; a command prints once and exits.
 */
#include "config.h"

#include "cbctl/output.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

#include "cbctl/timespec.h"
#include "libcbshm/name.h"
#include "libcbshm/timestamp.h"

struct kept {
	struct kept *next;
	char text[];
};

static struct {
	bool json;
	bool colour;
	locale_t locale; /* for wcwidth(); (locale_t)0: it does not know UTF-8 here */
	struct kept *kept;
} output;

/* ---- begin and end ---------------------------------------------------------------------- */

void output_begin(bool json)
{
	const char *no_colour = getenv("NO_COLOR");
	const char *terminal = getenv("TERM");

	output.json = json;
	output.colour = isatty(STDOUT_FILENO) && (no_colour == NULL || no_colour[0] == '\0') &&
			terminal != NULL && strcmp(terminal, "dumb") != 0;
	/* The widths of characters are wanted whatever the user's locale, and nothing else of a locale. */
	output.locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
	if (output.locale != (locale_t)0)
		uselocale(output.locale);
}

void output_forget(void)
{
	while (output.kept != NULL) {
		struct kept *kept = output.kept;

		output.kept = kept->next;
		free(kept);
	}
}

int output_end(int status)
{
	bool failed = fflush(stdout) != 0 || ferror(stdout);

	output_forget();
	if (output.locale != (locale_t)0) {
		uselocale(LC_GLOBAL_LOCALE);
		freelocale(output.locale);
	}
	if (failed && status == STATUS_DONE) {
		fprintf(stderr, "cbctl: cannot write the output: %s\n", strerror(errno));
		return STATUS_OTHER;
	}
	return status;
}

bool output_is_json(void)
{
	return output.json;
}

static _Noreturn void out_of_memory(void)
{
	fputs("cbctl: out of memory\n", stderr);
	exit(STATUS_OTHER);
}

static char *keep(size_t size)
{
	struct kept *kept = malloc(sizeof(*kept) + size);

	if (kept == NULL)
		out_of_memory();
	kept->next = output.kept;
	output.kept = kept;
	return kept->text;
}

/* ---- texts ------------------------------------------------------------------------------ */

/* The code point of a valid character of `length` bytes. */
static uint32_t code_point(const unsigned char *p, size_t length)
{
	uint32_t point = length == 1 ? p[0] : p[0] & (0x7fu >> length);

	for (size_t i = 1; i < length; i++)
		point = point << 6 | (p[i] & 0x3f);
	return point;
}

/* Controls, and what makes text appear other than it is: joiners and marks without width, reordering. */
static bool is_hidden(uint32_t point)
{
	return point < 0x20 || (point >= 0x7f && point < 0xa0) || point == 0xad || point == 0x61c ||
	       (point >= 0x200b && point <= 0x200f) || (point >= 0x2028 && point <= 0x202e) ||
	       (point >= 0x2060 && point <= 0x206f) || point == 0xfeff ||
	       (point >= 0xfff9 && point <= 0xfffb) || (point >= 0xe0000 && point <= 0xe0fff);
}

/* The length of the valid character at `text`, or 0. */
static size_t character(const char *text)
{
	const size_t left = strnlen(text, 4);

	for (size_t length = 1; length <= left; length++) {
		if (utf8_valid(text, length))
			return length;
	}
	return 0;
}

static char *escape(char *to, const unsigned char *from, size_t length)
{
	const uint32_t point = length > 0 ? code_point(from, length) : from[0];

	if (point == '\n')
		return to + sprintf(to, "\\n");
	if (point == '\t')
		return to + sprintf(to, "\\t");
	if (length <= 1)
		return to + sprintf(to, "\\x%02x", (unsigned)point & 0xff);
	return to + sprintf(to, "\\u%04x", (unsigned)point & 0x1fffff);
}

const char *clean(const char *text)
{
	char *result, *to;

	if (text == NULL)
		return "";
	/* The longest escape of one byte has four; of a character of two or more bytes, eight. */
	result = to = keep(strlen(text) * 4 + 1);
	while (*text != '\0') {
		const size_t length = character(text);

		if (length == 0 || is_hidden(code_point((const unsigned char *)text, length))) {
			to = escape(to, (const unsigned char *)text, length);
			text += length > 0 ? length : 1;
			continue;
		}
		memcpy(to, text, length);
		to += length;
		text += length;
	}
	*to = '\0';
	return result;
}

__attribute__((format(printf, 1, 0))) static const char *format_list(const char *format,
								     va_list args)
{
	va_list again;
	char *text;
	int length;

	va_copy(again, args);
	length = vsnprintf(NULL, 0, format, again);
	va_end(again);
	if (length < 0)
		out_of_memory();
	text = keep((size_t)length + 1);
	vsnprintf(text, (size_t)length + 1, format, args);
	return text;
}

const char *formatted(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	const char *text = format_list(format, args);
	va_end(args);
	return text;
}

const char *coloured(enum colour colour, const char *text)
{
	static const char *const codes[] = {
		[COLOUR_GOOD] = "32", [COLOUR_BAD] = "1;31", [COLOUR_DIM] = "2"};

	return output.colour ? formatted("\033[%sm%s\033[0m", codes[colour], text) : text;
}

const char *time_and_distance(int64_t us)
{
	char time_text[64], distance[64];
	struct timespec now;
	int64_t from_now;

	if (us == CBSHM_NO_TIME)
		return "at an unknown time";
	clock_gettime(CLOCK_REALTIME, &now);
	from_now = us - ((int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000);
	time_format(us, time_text, sizeof(time_text));
	duration_format(from_now < 0 ? -from_now : from_now, distance, sizeof(distance));
	return formatted(from_now < 0 ? "%s (%s ago)" : "%s (in %s)", time_text, distance);
}

/* The columns that the character at `text`, of `length` bytes, takes: none if it combines, two if it is wide. */
static int columns_of(const char *text, size_t length)
{
	const uint32_t point =
		length > 0 ? code_point((const unsigned char *)text, length) : 0xfffd;
	const int columns = output.locale != (locale_t)0 ? wcwidth((wchar_t)point) : 1;

	return columns >= 0 ? columns : 1;
}

int width(const char *text)
{
	int columns = 0;

	while (*text != '\0') {
		const size_t length = character(text);

		columns += columns_of(text, length);
		text += length > 0 ? length : 1;
	}
	return columns;
}

const char *fitted(const char *text, int columns)
{
	int used = 0, kept_columns = 0;
	size_t at = 0, kept_bytes = 0;

	if (width(text) <= columns)
		return text;
	if (columns < 4)
		return formatted("%.*s", columns > 0 ? columns : 0, "...");
	/* A character that combines with the last one that fits belongs to it. */
	while (used <= columns - 3) {
		const size_t length = character(text + at);

		kept_bytes = at;
		kept_columns = used;
		used += columns_of(text + at, length);
		at += length > 0 ? length : 1;
	}
	return formatted("%.*s...%*s", (int)kept_bytes, text, columns - 3 - kept_columns, "");
}

/* ---- errors ----------------------------------------------------------------------------- */

static int say_failure(int status, const char *error, const char *message, const char *hint)
{
	if (output.json) {
		cJSON *document = json_object(NULL, NULL);

		json_text(document, "error", error);
		json_text(document, "message", message);
		json_print(document);
		return status;
	}
	fflush(stdout);
	fprintf(stderr, "cbctl: %s\n%s", clean(message), hint);
	return status;
}

int fail(int status, const char *error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	const char *message = format_list(format, args);
	va_end(args);
	return say_failure(status, error, message, "");
}

const char *command_usage(const struct command *command)
{
	return formatted("cbctl %s%s%s", command->name, command->arguments[0] != '\0' ? " " : "",
			 command->arguments);
}

int fail_usage(const struct command *command, const char *format, ...)
{
	const char *hint = "Try: cbctl --help\n";
	va_list args;

	va_start(args, format);
	const char *message = format_list(format, args);
	va_end(args);
	if (command != NULL)
		hint = formatted("usage: %s\nMore: cbctl %s --help\n", command_usage(command),
				 command->name);
	return say_failure(STATUS_USAGE, "usage", message, hint);
}

static const struct {
	int error;
	const char *word;
	int status;
} errors[] = {
	{CBSHM_ERR_INVALID, "invalid", STATUS_USAGE},
	{CBSHM_ERR_MEMORY, "memory", STATUS_OTHER},
	{CBSHM_ERR_SYSTEM, "system", STATUS_OTHER},
	{CBSHM_ERR_NO_SEGMENT, "no_segment", STATUS_NO_SEGMENT},
	{CBSHM_ERR_UNTRUSTED, "untrusted", STATUS_NO_SEGMENT},
	{CBSHM_ERR_LAYOUT, "layout", STATUS_NO_SEGMENT},
	{CBSHM_ERR_NOT_FOUND, "not_found", STATUS_OTHER},
	{CBSHM_ERR_BUSY, "busy", STATUS_DOWN},
	{CBSHM_ERR_AGENT_DOWN, "agent_down", STATUS_DOWN},
	{CBSHM_ERR_DATABASE_DOWN, "database_down", STATUS_DOWN},
	{CBSHM_ERR_TIMEOUT, "timeout", STATUS_DOWN},
	{CBSHM_ERR_UNKNOWN, "outcome_unknown", STATUS_UNKNOWN},
	{CBSHM_ERR_DENIED, "denied", STATUS_DENIED},
	{CBSHM_ERR_PROTOCOL, "protocol", STATUS_OTHER},
	{CBSHM_ERR_REFUSED, "refused", STATUS_OTHER},
	{CBSHM_ERR_BEHIND, "behind", STATUS_BEHIND},
};

const char *error_word(int error)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		if (errors[i].error == error)
			return errors[i].word;
	}
	return "other";
}

int error_status(int error)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		if (errors[i].error == error)
			return errors[i].status;
	}
	return STATUS_OTHER;
}

int fail_library(int error, const struct cbshm_call *call)
{
	const int saved_errno = errno;
	const char *message =
		call != NULL && call->message[0] != '\0' ? call->message : cbshm_strerror(error);

	if (error == CBSHM_ERR_SYSTEM)
		return fail(error_status(error), error_word(error), "%s: %s", message,
			    strerror(saved_errno));
	return fail(error_status(error), error_word(error), "%s", message);
}

bool can_ask(void)
{
	return isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
}

bool ask(const char *question)
{
	char *answer = NULL;
	size_t size = 0;
	ssize_t length;
	bool yes;

	fflush(stdout);
	fprintf(stderr, "%s [y/N] ", clean(question));
	length = getline(&answer, &size, stdin);
	if (length < 0)
		fputc('\n', stderr);
	yes = length > 0 && (strcasecmp(answer, "y\n") == 0 || strcasecmp(answer, "yes\n") == 0);
	free(answer);
	return yes;
}

void warn(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	const char *message = format_list(format, args);
	va_end(args);
	fflush(stdout);
	fprintf(stderr, "cbctl: warning: %s\n", clean(message));
}

/* ---- JSON ------------------------------------------------------------------------------- */

static void add(cJSON *object, const char *name, cJSON *value)
{
	if (value == NULL || !(name != NULL ? cJSON_AddItemToObject(object, name, value)
					    : cJSON_AddItemToArray(object, value)))
		out_of_memory();
}

/* What is no UTF-8 is no JSON either: such bytes become U+FFFD. */
static const char *valid_text(const char *text)
{
	char *result, *to;

	if (utf8_valid(text, strlen(text)))
		return text;
	result = to = keep(strlen(text) * 3 + 1);
	while (*text != '\0') {
		const size_t length = character(text);

		memcpy(to, length > 0 ? text : "\xef\xbf\xbd", length > 0 ? length : 3);
		to += length > 0 ? length : 3;
		text += length > 0 ? length : 1;
	}
	*to = '\0';
	return result;
}

void json_text(cJSON *object, const char *name, const char *text)
{
	add(object, name, text != NULL ? cJSON_CreateString(valid_text(text)) : cJSON_CreateNull());
}

void json_time(cJSON *object, const char *name, int64_t us)
{
	char text[TIMESTAMP_SIZE];

	json_text(object, name, us != CBSHM_NO_TIME && timestamp_format(us, text) ? text : NULL);
}

void json_bool(cJSON *object, const char *name, bool value)
{
	add(object, name, cJSON_CreateBool(value));
}

void json_whole(cJSON *object, const char *name, int64_t value)
{
	add(object, name, cJSON_CreateRaw(formatted("%lld", (long long)value)));
}

void json_number(cJSON *object, const char *name, double value)
{
	if (!isfinite(value)) {
		add(object, name, cJSON_CreateNull());
		return;
	}
	/* As few digits as read back as the same number. */
	for (int digits = 15; digits <= 17; digits++) {
		const char *text = formatted("%.*g", digits, value);

		if (digits == 17 || strtod(text, NULL) == value) {
			add(object, name, cJSON_CreateRaw(text));
			return;
		}
	}
}

cJSON *json_object(cJSON *parent, const char *name)
{
	cJSON *object = cJSON_CreateObject();

	if (object == NULL)
		out_of_memory();
	if (parent != NULL)
		add(parent, name, object);
	return object;
}

cJSON *json_array(cJSON *parent, const char *name)
{
	cJSON *array = cJSON_CreateArray();

	add(parent, name, array);
	return array;
}

void json_policy(cJSON *object, const struct cbshm_policy *policy)
{
	json_number(object, "drift_threshold", policy->drift_threshold);
	json_whole(object, "failure_threshold", policy->failure_threshold);
	json_whole(object, "schema_error_threshold", policy->schema_error_threshold);
	json_number(object, "default_ttl_seconds", (double)policy->default_ttl_us / 1e6);
	json_bool(object, "auto_recover", policy->auto_recover);
}

/* Escapes what cJSON leaves as it is, but no terminal should get. */
static void print_escaped(const char *text)
{
	while (*text != '\0') {
		const size_t length = character(text);
		const uint32_t point =
			length > 0 ? code_point((const unsigned char *)text, length) : 0xfffd;

		if (length > 0 && !is_hidden(point))
			fwrite(text, 1, length, stdout);
		else if (point < 0x10000)
			printf("\\u%04x", (unsigned)point);
		else
			printf("\\u%04x\\u%04x", (unsigned)(0xd7c0 + (point >> 10)),
			       (unsigned)(0xdc00 + (point & 0x3ff)));
		text += length > 0 ? length : 1;
	}
	putchar('\n');
}

void json_print(cJSON *document)
{
	char *text = cJSON_PrintUnformatted(document);

	if (text == NULL)
		out_of_memory();
	print_escaped(text);
	cJSON_free(text);
	cJSON_Delete(document);
}
