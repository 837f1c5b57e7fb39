/*
 * segment_file.h - the segment as a file: whose it is, who may write it, making one and putting it in place
 *
 * SPDX-License-Identifier: ISC
 *
 * Under segment_writer.c and for it alone. Knows the header, not the breakers. Functions return 0 or -errno
 * unless they say otherwise, and then *message says what is wrong and what to do.
 */
#ifndef AGENT_SEGMENT_FILE_H
#define AGENT_SEGMENT_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/segment_writer.h"
#include "libcbshm/validate.h"

/* Where an error is explained. */
struct segment_message {
	char *text;
	size_t size;
};

struct segment_file {
	int fd; /* -1: none */
	struct segment_view view;
};

/* Writes the explanation and returns `error`. */
int segment_fail(const struct segment_message *message, int error, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* "/dev/shm" + name + suffix. */
void segment_path(char path[256], const char *name, const char *suffix);

/*
 * Takes the lock that makes this process the only writer. It is an object of its own, which nobody else can open: a
 * lock on the segment could be taken, and kept, by everybody who may read that. -EAGAIN: another agent has it.
 */
int segment_lock(const char *name, int *descriptor, const struct segment_message *message);

/* Does the lock still have its name? Otherwise the next agent makes another one, and holds that. */
bool segment_lock_in_place(int descriptor, const char *name);

/*
 * Opens and maps the segment that stands under the name. 1: it is there and it is ours, but damaged or of another
 * layout (nothing is mapped). -ENOENT: there is none. Anything else: it must not be touched.
 */
int segment_file_open(struct segment_file *file, const char *name,
		      const struct segment_message *message);

/* Makes an empty segment aside, with room for `slots` records at first; its state is CBSHM_SEGMENT_NEW. */
int segment_file_create(struct segment_file *file, const struct segment_options *options,
			uint32_t capacity, uint32_t slots, const struct segment_message *message);

/* Gives the segment made aside its name; what had it before loses it. */
int segment_file_install(const char *name, const struct segment_message *message);
/* Or throws it away. */
void segment_file_discard(struct segment_file *file, const char *name);

/* The mode and the group of the options. */
int segment_file_permit(const struct segment_file *file, const struct segment_options *options,
			const struct segment_message *message);

/* Allocates the records up to `slots` and publishes them. */
int segment_file_grow(struct segment_file *file, uint32_t slots);

/* Opens the file once more, only to read it: the descriptor, or -errno. -ESTALE: the name leads elsewhere. */
int segment_file_open_reader(const struct segment_file *file, const char *name);

/* Does the name still lead to this file? */
bool segment_file_in_place(const struct segment_file *file, const char *name);

/* Was it made under the kernel that runs now? Deadlines mean nothing under another. */
bool segment_file_same_boot(const struct segment_file *file);

/*
 * Locks the header's robust mutex for the calling thread and tells readers where its word is; gives
 * it back. Only for who holds the segment's lock: the mutex is made anew.
 */
int segment_owner_take(const struct segment_file *file, const struct segment_message *message);
void segment_owner_release(const struct segment_file *file);

/* Wakes whoever waits for a change. */
void segment_wake(const struct segment_file *file);

/* Unmaps and closes; the file stays. */
void segment_file_close(struct segment_file *file);

#endif /* AGENT_SEGMENT_FILE_H */
