/*
 * segment_file.c - the segment as a file
 *
 * SPDX-License-Identifier: ISC
 *
 * /dev/shm is writable by everybody: any name in it may have been taken by somebody else before. So nothing is opened with
 * O_CREAT but together with O_EXCL (fs.protected_regular forbids more to root, too), nothing is followed, and what
 * was there before is believed only if it can be nobody's work but our own.
 *
 * The file never shrinks and is never written to with holes in it: posix_fallocate() before the
 * bytes are announced, so that neither we nor a reader can get SIGBUS from a full file system.
 */
#include <config.h>

#include "agent/segment_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cbshm/latch.h"
#include "libcbshm/boot.h"

#define SUFFIX_LOCK "lock"
#define SUFFIX_NEW  "new"
#define LOCK_TRIES  16

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct cbshm_segment_header *)0)->owner_mutex),
	       "the owner mutex does not fit into the header");

int segment_fail(const struct segment_message *message, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(message->text, message->size, format, args);
	va_end(args);
	return error;
}

void segment_path(char path[256], const char *name, const char *suffix)
{
	snprintf(path, 256, "%s%s%s%s", SEGMENT_DIRECTORY, name, *suffix ? "." : "", suffix);
}

/* Could anybody but this user have made this file, or write to it? `readable`: others may read it. */
static int check_ours(int fd, const char *path, bool readable,
		      const struct segment_message *message)
{
	struct stat status;

	if (fstat(fd, &status) < 0)
		return segment_fail(message, -errno, "%s: %s", path, strerror(errno));
	if (!S_ISREG(status.st_mode))
		return segment_fail(message, -EPERM, "%s is not a regular file; remove it", path);
	if (status.st_uid != geteuid())
		return segment_fail(message, -EPERM,
				    "%s belongs to uid %u, not to uid %u that cbagent runs as; "
				    "remove it, or run cbagent as that user",
				    path, (unsigned int)status.st_uid, (unsigned int)geteuid());
	if (status.st_nlink != 1)
		return segment_fail(message, -EPERM, "%s has other hard links; remove it", path);
	if (status.st_mode & (readable ? S_IWGRP | S_IWOTH : S_IRWXG | S_IRWXO))
		return segment_fail(message, -EPERM,
				    "%s is open to other users (mode %04o); remove it", path,
				    (unsigned int)status.st_mode & 07777);
	return 0;
}

/* Opens what is already there. */
static int open_ours(const char *path, bool readable, int *descriptor,
		     const struct segment_message *message)
{
	int fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0 && errno == ELOOP)
		return segment_fail(message, -ELOOP, "%s is a symbolic link; remove it", path);
	if (fd < 0)
		return segment_fail(
			message, -errno, "%s cannot be opened: %s%s", path, strerror(errno),
			errno == EACCES ? " (it belongs to another user; remove it)" : "");
	int error = check_ours(fd, path, readable, message);
	if (error)
		close(fd);
	else
		*descriptor = fd;
	return error;
}

static int create_ours(const char *path, int *descriptor, const struct segment_message *message)
{
	crash_point();
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0)
		return segment_fail(message, -errno, "%s cannot be created: %s", path,
				    strerror(errno));
	*descriptor = fd;
	return 0;
}

static bool same_file(int fd, const char *path)
{
	struct stat open_one, named_one;

	return fstat(fd, &open_one) == 0 && lstat(path, &named_one) == 0 &&
	       open_one.st_ino == named_one.st_ino && open_one.st_dev == named_one.st_dev;
}

/* ---- the lock --------------------------------------------------------------------------- */

static int lock_file(int fd, const char *path, const struct segment_message *message)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	/* Of the open file, not of the process: no close() elsewhere in the process gives it up. */
	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return segment_fail(message, -EAGAIN,
				    "another cbagent is running on this segment (it holds %s)",
				    path);
	return segment_fail(message, -errno, "%s cannot be locked: %s", path, strerror(errno));
}

int segment_lock(const char *name, int *descriptor, const struct segment_message *message)
{
	char path[256];
	int error = 0;

	segment_path(path, name, SUFFIX_LOCK);
	for (int i = 0; i < LOCK_TRIES; i++) {
		int fd = -1;

		error = open_ours(path, false, &fd, message);
		if (error == -ENOENT)
			error = create_ours(path, &fd, message);
		if (error == -EEXIST)
			continue; /* somebody was faster */
		if (error)
			return error;
		error = lock_file(fd, path, message);
		if (!error && same_file(fd, path)) {
			*descriptor = fd;
			return 0;
		}
		close(fd);
		if (error)
			return error;
	}
	return segment_fail(message, -EAGAIN, "%s comes and goes; who removes it?", path);
}

bool segment_lock_in_place(int descriptor, const char *name)
{
	char path[256];

	segment_path(path, name, SUFFIX_LOCK);
	return same_file(descriptor, path);
}

/* ---- opening and making ----------------------------------------------------------------- */

static int map_file(struct segment_file *file, const struct segment_layout *layout)
{
	void *base =
		mmap(NULL, layout->total_size, PROT_READ | PROT_WRITE, MAP_SHARED, file->fd, 0);

	if (base == MAP_FAILED)
		return -errno;
	file->view.base = base;
	file->view.layout = *layout;
	return 0;
}

int segment_file_open(struct segment_file *file, const char *name,
		      const struct segment_message *message)
{
	struct cbshm_segment_header header;
	struct segment_layout layout;
	struct stat status;
	char path[256];

	segment_path(path, name, "");
	*file = (struct segment_file){.fd = -1};
	int error = open_ours(path, true, &file->fd, message);
	if (error)
		return error;
	ssize_t count = pread(file->fd, &header, sizeof(header), 0);
	if (count < 0 || fstat(file->fd, &status) < 0)
		error = segment_fail(message, -errno, "%s: %s", path, strerror(errno));
	else if ((size_t)count < sizeof(header) ||
		 segment_validate(&header, (uint64_t)status.st_size, &layout) != NULL)
		error = 1;
	else if (map_file(file, &layout) < 0)
		error = segment_fail(message, -errno, "%s cannot be mapped: %s", path,
				     strerror(errno));
	if (error)
		segment_file_close(file);
	return error;
}

static int allocate(int fd, uint64_t offset, uint64_t length)
{
	int error;

	crash_point();
	do {
		error = posix_fallocate(fd, (off_t)offset, (off_t)length);
	} while (error == EINTR);
	return -error;
}

bool segment_file_same_boot(const struct segment_file *file)
{
	uint8_t id[16];

	boot_id_read(id);
	return memcmp(id, segment_header(&file->view)->boot_id, sizeof(id)) == 0;
}

/* `magic` last: but nobody can see the file before it has its name, and it has none yet. */
static int fill_header(struct segment_file *file, uint32_t slots)
{
	struct cbshm_segment_header *header = segment_header(&file->view);
	struct segment_layout *layout = &file->view.layout;

	uint64_t random[3];

	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return -EIO;
	layout->hash_key[0] = random[0];
	layout->hash_key[1] = random[1];
	/* So that a waiter that has seen another segment's sequence sees a change. */
	header->change_sequence = random[2] >> 8;
	crash_point();
	header->byte_order = CBSHM_BYTE_ORDER;
	header->layout_major = CBSHM_LAYOUT_MAJOR;
	header->layout_minor = CBSHM_LAYOUT_MINOR;
	header->layout_hash = CBSHM_LAYOUT_HASH;
	header->header_size = CBSHM_HEADER_SIZE;
	header->record_size = sizeof(struct cbshm_record);
	header->capacity = layout->capacity;
	header->index_size = layout->index_size;
	header->index_offset = layout->index_offset;
	header->words_offset = layout->words_offset;
	header->records_offset = layout->records_offset;
	header->total_size = layout->total_size;
	header->hash_key[0] = layout->hash_key[0];
	header->hash_key[1] = layout->hash_key[1];
	header->allocated = slots;
	header->index_word = CBSHM_WORD_INDEX;
	boot_id_read(header->boot_id);
	word_store(&header->magic, CBSHM_SEGMENT_MAGIC);
	return 0;
}

/* What a killed agent may have left under the name aside. */
static int remove_leftover(const char *path, const struct segment_message *message)
{
	struct stat status;

	if (lstat(path, &status) < 0)
		return 0;
	if (status.st_uid != geteuid())
		return segment_fail(message, -EPERM, "%s belongs to uid %u; remove it", path,
				    (unsigned int)status.st_uid);
	crash_point();
	if (unlink(path) < 0)
		return segment_fail(message, -errno, "%s cannot be removed: %s", path,
				    strerror(errno));
	return 0;
}

int segment_file_create(struct segment_file *file, const struct segment_options *options,
			uint32_t capacity, uint32_t slots, const struct segment_message *message)
{
	struct segment_layout layout = segment_layout_for(capacity);
	uint64_t size = layout.records_offset + slots * sizeof(struct cbshm_record);
	char path[256];

	segment_path(path, options->name, SUFFIX_NEW);
	*file = (struct segment_file){.fd = -1};
	int error = remove_leftover(path, message);
	if (!error)
		error = create_ours(path, &file->fd, message);
	if (error)
		return error;
	error = allocate(file->fd, 0, size);
	if (error == -ENOSPC)
		segment_fail(message, error,
			     "%s is full: the segment needs %llu KiB to begin with; enlarge the "
			     "file system or lower [segment] capacity",
			     SEGMENT_DIRECTORY, (unsigned long long)(size / 1024));
	else if (error)
		segment_fail(message, error, "%s cannot be allocated: %s", path, strerror(-error));
	if (!error) {
		error = map_file(file, &layout);
		if (!error)
			error = fill_header(file, slots);
		if (error)
			segment_fail(message, error, "%s cannot be set up: %s", path,
				     strerror(-error));
	}
	if (!error)
		error = segment_file_permit(file, options, message);
	if (error)
		segment_file_discard(file, options->name);
	return error;
}

int segment_file_install(const char *name, const struct segment_message *message)
{
	char from[256], to[256];

	segment_path(from, name, SUFFIX_NEW);
	segment_path(to, name, "");
	crash_point();
	if (rename(from, to) < 0)
		return segment_fail(message, -errno, "%s cannot be put in place: %s", to,
				    strerror(errno));
	return 0;
}

void segment_file_discard(struct segment_file *file, const char *name)
{
	char path[256];

	segment_path(path, name, SUFFIX_NEW);
	if (file->fd >= 0 && same_file(file->fd, path))
		unlink(path);
	segment_file_close(file);
}

int segment_file_permit(const struct segment_file *file, const struct segment_options *options,
			const struct segment_message *message)
{
	crash_point();
	if (options->group != (gid_t)-1 && fchown(file->fd, (uid_t)-1, options->group) < 0)
		return segment_fail(message, -errno,
				    "the segment cannot be given to group %u: %s ([segment] group; "
				    "cbagent's user must be a member of it)",
				    (unsigned int)options->group, strerror(errno));
	if (fchmod(file->fd, options->mode) < 0)
		return segment_fail(message, -errno, "the segment's mode cannot be set: %s",
				    strerror(errno));
	return 0;
}

/* A chunk that fills up at once, as in a load, is mapped at once: a fault for each page takes far longer. */
static void populate(const struct segment_file *file, uint64_t offset, uint64_t length)
{
#ifdef MADV_POPULATE_WRITE
	const uint64_t begin = offset & ~(uint64_t)4095;

	/* Linux before 5.14 does not know it, and faults. */
	(void)madvise(file->view.base + begin, offset + length - begin, MADV_POPULATE_WRITE);
#else
	(void)file;
	(void)offset;
	(void)length;
#endif
}

int segment_file_grow(struct segment_file *file, uint32_t slots)
{
	struct cbshm_segment_header *header = segment_header(&file->view);
	uint32_t have = segment_allocated(&file->view);
	uint64_t offset = file->view.layout.records_offset + have * sizeof(struct cbshm_record);
	uint64_t length = (slots - have) * sizeof(struct cbshm_record);

	if (slots <= have)
		return 0;
	int error = allocate(file->fd, offset, length);
	if (!error) {
		populate(file, offset, length);
		word_store(&header->allocated, slots); /* pairs with segment_allocated() */
	}
	return error;
}

int segment_file_open_reader(const struct segment_file *file, const char *name)
{
	char path[256];

	segment_path(path, name, "");
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return errno == ENOENT || errno == ELOOP ? -ESTALE : -errno;
	struct stat ours, opened;
	if (fstat(file->fd, &ours) == 0 && fstat(fd, &opened) == 0 &&
	    ours.st_ino == opened.st_ino && ours.st_dev == opened.st_dev)
		return fd;
	close(fd);
	return -ESTALE;
}

bool segment_file_in_place(const struct segment_file *file, const char *name)
{
	char path[256];

	segment_path(path, name, "");
	return same_file(file->fd, path);
}

void segment_file_close(struct segment_file *file)
{
	if (file->view.base)
		munmap(file->view.base, file->view.layout.total_size);
	if (file->fd >= 0)
		close(file->fd);
	*file = (struct segment_file){.fd = -1};
}

/* ---- the owner -------------------------------------------------------------------------- */

static pthread_mutex_t *owner_mutex(const struct segment_file *file)
{
	return (pthread_mutex_t *)(void *)segment_header(&file->view)->owner_mutex;
}

/* The kernel's list of the robust mutexes that a thread holds (linux/futex.h). */
static uint32_t find_owner_word(const struct segment_file *file)
{
	const unsigned char *mutex = (const unsigned char *)owner_mutex(file);
	struct robust_list_head *head;
	size_t size;

	if (syscall(SYS_get_robust_list, 0, &head, &size) != 0 || size != sizeof(*head))
		return 0;
	const struct robust_list *entry = &head->list;
	for (int i = 0; i < 64; i++) {
		entry = (const struct robust_list *)((uintptr_t)entry->next & ~(uintptr_t)1);
		if (entry == &head->list)
			break;
		const unsigned char *word = (const unsigned char *)entry + head->futex_offset;
		if (word >= mutex && word + 4 <= mutex + sizeof(pthread_mutex_t))
			return (uint32_t)(word - file->view.base);
	}
	return 0;
}

/*
 * Which word of a pthread_mutex_t the kernel marks when its owner dies is the C library's secret (glibc keeps the
 * owner's id twice in it). But the library has to tell the kernel: the word is where the thread's
 * robust list leads to. That it holds our thread id is the proof.
 */
int segment_owner_take(const struct segment_file *file, const struct segment_message *message)
{
	struct cbshm_segment_header *header = segment_header(&file->view);
	pthread_mutexattr_t attributes;
	int error;

	crash_point();
	memset(header->owner_mutex, 0, sizeof(header->owner_mutex));
	error = pthread_mutexattr_init(&attributes);
	if (!error)
		error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	if (!error)
		error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	if (!error)
		error = pthread_mutex_init(owner_mutex(file), &attributes);
	crash_point();
	if (!error)
		error = pthread_mutex_lock(owner_mutex(file));
	if (error)
		return segment_fail(message, -error, "the owner's mutex cannot be locked: %s",
				    strerror(error));
	uint32_t offset = find_owner_word(file);
	if (offset == 0 || offset % 4 != 0 ||
	    (word32_load((const uint32_t *)(const void *)(file->view.base + offset)) &
	     CBSHM_OWNER_TID_MASK) != (uint32_t)gettid()) {
		pthread_mutex_unlock(owner_mutex(file));
		return segment_fail(message, -ENOTSUP,
				    "this C library's robust mutexes are not understood");
	}
	word32_store(&header->owner_word_offset, offset); /* pairs with owner_alive() */
	word_store(&header->owner_pid, (uint64_t)getpid());
	return 0;
}

void segment_owner_release(const struct segment_file *file)
{
	crash_point();
	pthread_mutex_unlock(owner_mutex(file));
}

void segment_wake(const struct segment_file *file)
{
	struct cbshm_segment_header *header = segment_header(&file->view);
	uint32_t *futex = (uint32_t *)(void *)&header->change_sequence;

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	futex++; /* its low half */
#endif
	word_store(&header->change_sequence, word_load(&header->change_sequence) + 1);
	crash_point();
	syscall(SYS_futex, futex, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}
