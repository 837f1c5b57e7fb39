/*
 * error.c - errors in words, and the version
 *
 * SPDX-License-Identifier: ISC
 *
 * Not a log: the library prints nothing. The short texts are for every error, the long one, with
 * names and what to do, goes into the caller's struct cbshm_call.
 */
#include "config.h"

#include "libcbshm/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "libcbshm/name.h"

const char *cbshm_strerror(int error)
{
	switch (error) {
	case CBSHM_OK:
		return "no error";
	case CBSHM_ERR_INVALID:
		return "an argument is out of its range";
	case CBSHM_ERR_MEMORY:
		return "out of memory";
	case CBSHM_ERR_SYSTEM:
		return "a system call failed";
	case CBSHM_ERR_NO_SEGMENT:
		return "there is no shared-memory segment of that name";
	case CBSHM_ERR_UNTRUSTED:
		return "the segment or the socket belongs to a user who is not trusted";
	case CBSHM_ERR_LAYOUT:
		return "the segment is damaged or of an unknown layout";
	case CBSHM_ERR_NOT_FOUND:
		return "no such breaker";
	case CBSHM_ERR_BUSY:
		return "the breaker is being changed by somebody else; try again";
	case CBSHM_ERR_AGENT_DOWN:
		return "the agent does not answer";
	case CBSHM_ERR_DATABASE_DOWN:
		return "the agent cannot reach a writable Postgres";
	case CBSHM_ERR_TIMEOUT:
		return "the deadline passed; nothing was applied";
	case CBSHM_ERR_UNKNOWN:
		return "the answer is lost; it may or may not have been applied";
	case CBSHM_ERR_DENIED:
		return "not allowed for this user";
	case CBSHM_ERR_PROTOCOL:
		return "the peer at the socket does not speak io.cbshm";
	case CBSHM_ERR_REFUSED:
		return "refused by the agent or the database; nothing was applied";
	case CBSHM_ERR_FULL:
		return "the buffer for reports is full; this one was dropped";
	case CBSHM_ERR_BEHIND:
		return "not every host has it yet";
	default:
		return "unknown error";
	}
}

const char *cbshm_version(void)
{
	return PACKAGE_VERSION;
}

int call_fail(struct cbshm_call *call, int error, const char *format, ...)
{
	const int saved_errno = errno;
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	utf8_copy_sentence(call->message, sizeof(call->message), text);
	errno = saved_errno;
	return error;
}

int call_fail_memory(struct cbshm_call *call)
{
	return call_fail(call, CBSHM_ERR_MEMORY, "out of memory");
}
