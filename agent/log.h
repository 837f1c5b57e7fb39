/*
 * log.h - one line on standard error for each event worth telling
 *
 * SPDX-License-Identifier: ISC
 *
 *	level=info event=listening socket=/run/cbshm/io.cbshm mode=0660
 *
 * With the journal's priority prefix ("<6>") when standard error leads to the journal. The only
 * state is the level. Any thread may log, a line is written at once.
 */
#ifndef AGENT_LOG_H
#define AGENT_LOG_H

#include <stdbool.h>

enum log_level {
	LOG_LEVEL_ERROR,   /* something has failed and a person should look */
	LOG_LEVEL_WARNING, /* it goes on, but not as it should */
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

/* Events above this level are not written. At start: info. */
void log_set_level(enum log_level level);

/* "error", "warning", "info" or "debug"; false for anything else. */
bool log_level_parse(const char *text, enum log_level *level);

/*
 * Writes a line. `format` makes the rest of it, "key=value key=value", and may be ""; wrap every text that
 * comes from outside in LOG_VALUE(), plain numbers and names of our own need nothing:
 *
 *	log_event(LOG_LEVEL_INFO, "socket_ready", "path=%s uid=%d", LOG_VALUE(path), uid);
 *
 * Whatever is passed, it is one line: control characters come out escaped, and a line longer than
 * 4096 bytes is cut.
 */
void log_event(enum log_level level, const char *event, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * The same for what is not as it should be: errors and warnings are written with this alone, since each must tell the
 * person who reads it what to do. `hint` is that, as text; it comes last in the line, as hint="...".
 */
void log_problem(enum log_level level, const char *event, const char *hint, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

#define LOG_VALUE_SIZE 1024

struct log_value {
	char text[LOG_VALUE_SIZE];
};

/* The text as it stands after `key=`: quoted and escaped if it needs it, cut with "..." if too long. NULL reads as "". */
const char *log_value(struct log_value *room, const char *text);

/* Lives to the end of the enclosing block. */
#define LOG_VALUE(text) log_value(&(struct log_value){{0}}, (text))

#endif /* AGENT_LOG_H */
