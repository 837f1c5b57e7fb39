/*
 * alone.c - stand-ins for what the cross-built tests of the segment do without
 *
 * SPDX-License-Identifier: ISC
 *
 * qemu-user has no robust futexes: who owns the segment is written down without the kernel's help.
 */
#include "config.h"

#include <unistd.h>

#include "agent/segment_file.h"
#include "cbshm/latch.h"

/* The linker puts these in place of those of segment_file.c (--wrap). */
int __wrap_segment_owner_take(const struct segment_file *file,
			      const struct segment_message *message);
int __wrap_segment_owner_take(const struct segment_file *file,
			      const struct segment_message *message)
{
	struct cbshm_segment_header *header = segment_header(&file->view);

	(void)message;
	word32_store((uint32_t *)(void *)header->owner_mutex, (uint32_t)gettid());
	word32_store(&header->owner_word_offset,
		     (uint32_t)offsetof(struct cbshm_segment_header, owner_mutex));
	return 0;
}

void __wrap_segment_owner_release(const struct segment_file *file);
void __wrap_segment_owner_release(const struct segment_file *file)
{
	word32_store((uint32_t *)(void *)segment_header(&file->view)->owner_mutex, 0);
}
