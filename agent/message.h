/*
 * message.h - the envelope: a frame from the socket taken apart, a reply put together
 *
 * SPDX-License-Identifier: ISC
 *
 * Knows Varlink's framing and its call and reply objects, but no method. No I/O.
 */
#ifndef AGENT_MESSAGE_H
#define AGENT_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>

#include <cjson/cJSON.h>

#define MESSAGE_SIZE_MAX  65536u /* bytes of JSON in a frame, its NUL not counted */
#define MESSAGE_DEPTH_MAX 64     /* objects and arrays within each other */

enum reply_error {
	REPLY_OK,
	REPLY_MALFORMED, /* the only one after which the connection closes */
	REPLY_INVALID_ARGUMENT,
	REPLY_NOT_FOUND,
	REPLY_PERMISSION_DENIED,
	REPLY_DATABASE_UNAVAILABLE,
	REPLY_BUSY,
	REPLY_TIMEOUT,
	REPLY_OUTCOME_UNKNOWN,
	REPLY_LIMIT_EXCEEDED,
	REPLY_DATABASE_ERROR,
	/* org.varlink.service.* */
	REPLY_INTERFACE_NOT_FOUND,
	REPLY_METHOD_NOT_FOUND,
	REPLY_INVALID_PARAMETER,
	REPLY_EXPECTED_MORE,
	REPLY_ERRORS
};

/* The error's name as it goes over the wire; NULL for REPLY_OK. */
const char *reply_error_name(enum reply_error error);

/* What is wrong. `subject` is the field, name, method, ... that the error is about, where it has one. */
struct fault {
	enum reply_error error;
	char subject[160];
	char message[640];
};

/*
 * Fills a fault; texts that do not fit are cut between characters, the message between words. `subject` may be NULL. Returns false,
 * for `return`.
 */
bool fault_set(struct fault *fault, enum reply_error error, const char *subject, const char *format,
	       ...) __attribute__((format(printf, 4, 5)));

/* One call. */
struct message {
	const char *text; /* the frame; the caller keeps it */
	cJSON *root;
	const char *method;      /* in root */
	const cJSON *parameters; /* an object in root, or NULL */
	bool oneway;
	bool more;
	bool upgrade;
};

/*
 * Takes a frame apart. `text` is NUL-terminated, and `size` is its length without that NUL. False: *fault is REPLY_MALFORMED and
 * there is nothing to free.
 */
bool message_parse(const char *text, size_t size, struct message *message, struct fault *fault);
void message_free(struct message *message);

/*
 * A parameter as the client wrote it, but without blanks between the tokens; free(). cJSON's own printing would change numbers
 * of more than 15 digits. NULL: out of memory.
 */
char *message_parameter_text(const struct message *message, const cJSON *parameter);

/*
 * Replies as JSON text, to be freed with free(); NULL: out of memory. message_reply() takes the parameters
 * over; NULL stands for none.
 */
char *message_reply(cJSON *parameters);
char *message_error(const struct fault *fault);

#endif /* AGENT_MESSAGE_H */
