/*
 * log.c - formats events as lines of key=value on standard error
 *
 * SPDX-License-Identifier: ISC
 *
 * No files, no rotation, no syslog(3): whoever starts the agent decides where standard error goes.
 */
#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/log.h"

#define LINE_SIZE 4096

static const struct {
	const char *name;
	char journal_priority; /* as syslog(3) numbers them */
} levels[] = {
	[LOG_LEVEL_ERROR] = {"error", '3'},
	[LOG_LEVEL_WARNING] = {"warning", '4'},
	[LOG_LEVEL_INFO] = {"info", '6'},
	[LOG_LEVEL_DEBUG] = {"debug", '7'},
};

static enum log_level log_level_now = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
	__atomic_store_n(&log_level_now, level, __ATOMIC_RELAXED);
}

bool log_level_parse(const char *text, enum log_level *level)
{
	for (size_t i = 0; i < sizeof(levels) / sizeof(*levels); i++) {
		if (strcmp(text, levels[i].name) == 0) {
			*level = (enum log_level)i;
			return true;
		}
	}
	return false;
}

/* Does standard error lead to the journal? The variable alone does not say so: it is inherited. */
static bool stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	uintmax_t device, inode;
	struct stat st;
	char *end;

	if (stream == NULL)
		return false;
	device = strtoumax(stream, &end, 10);
	if (*end != ':')
		return false;
	inode = strtoumax(end + 1, NULL, 10);
	return fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

static bool is_control(unsigned char c)
{
	return c < 0x20 || c == 0x7f;
}

static bool needs_quotes(const char *text)
{
	if (*text == '\0')
		return true;
	for (const char *p = text; *p != '\0'; p++) {
		if (is_control((unsigned char)*p) || strchr(" \"\\=", *p) != NULL)
			return true;
	}
	return false;
}

/* Writes the escaped form of one byte, at most 4 bytes, and returns its length. */
static size_t escape(char *out, unsigned char c)
{
	static const char hex[] = "0123456789abcdef";

	if (c == '\n' || c == '\t' || c == '\r') {
		out[0] = '\\';
		out[1] = c == '\n' ? 'n' : c == '\t' ? 't' : 'r';
		return 2;
	}
	if (is_control(c)) {
		memcpy(out, "\\x", 2);
		out[2] = hex[c >> 4];
		out[3] = hex[c & 15];
		return 4;
	}
	if (c == '"' || c == '\\') {
		out[0] = '\\';
		out[1] = (char)c;
		return 2;
	}
	out[0] = (char)c;
	return 1;
}

const char *log_value(struct log_value *room, const char *text)
{
	const size_t tail = sizeof("...\"");
	size_t used = 0;

	if (text == NULL)
		text = "";
	if (!needs_quotes(text) && strlen(text) < sizeof(room->text))
		return strcpy(room->text, text);
	room->text[used++] = '"';
	for (; *text != '\0'; text++) {
		if (used + 4 + tail > sizeof(room->text)) {
			memcpy(room->text + used, "...", 3);
			used += 3;
			break;
		}
		used += escape(room->text + used, (unsigned char)*text);
	}
	room->text[used++] = '"';
	room->text[used] = '\0';
	return room->text;
}

static size_t clamp(int formatted, size_t room)
{
	if (formatted < 0)
		return 0;
	return (size_t)formatted < room ? (size_t)formatted : room - 1;
}

static void write_event(enum log_level level, const char *event, const char *hint,
			const char *format, va_list args) __attribute__((format(printf, 4, 0)));

static void write_event(enum log_level level, const char *event, const char *hint,
			const char *format, va_list args)
{
	const int saved_errno = errno;
	char line[LINE_SIZE];
	size_t used, start;

	if (level > __atomic_load_n(&log_level_now, __ATOMIC_RELAXED))
		return;
	used = 0;
	if (stderr_is_journal())
		used = clamp(snprintf(line, sizeof(line), "<%c>", levels[level].journal_priority),
			     sizeof(line));
	used += clamp(snprintf(line + used, sizeof(line) - used, "level=%s event=%s%s",
			       levels[level].name, event,
			       *format != '\0' || hint != NULL ? " " : ""),
		      sizeof(line) - used);
	start = used;
	used += clamp(vsnprintf(line + used, sizeof(line) - used, format, args),
		      sizeof(line) - used);
	if (hint != NULL)
		used += clamp(snprintf(line + used, sizeof(line) - used, "%shint=%s",
				       *format != '\0' ? " " : "", LOG_VALUE(hint)),
			      sizeof(line) - used);
	/* One event is one line, even where a caller forgot LOG_VALUE(). */
	for (size_t i = start; i < used; i++) {
		if (is_control((unsigned char)line[i]))
			line[i] = ' ';
	}
	line[used++] = '\n';
	/* One write: lines of several threads or processes do not mix. Nobody is left to tell of a failure. */
	if (write(STDERR_FILENO, line, used) < 0)
		errno = saved_errno;
	errno = saved_errno;
}

void log_event(enum log_level level, const char *event, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	write_event(level, event, NULL, format, args);
	va_end(args);
}

void log_problem(enum log_level level, const char *event, const char *hint, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	write_event(level, event, hint, format, args);
	va_end(args);
}
