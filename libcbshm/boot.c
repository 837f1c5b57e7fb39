/*
 * boot.c - which run of the kernel this is
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include "libcbshm/boot.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

bool boot_id_read(uint8_t id[16])
{
	char text[64] = "";
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	size_t digits = 0;

	memset(id, 0, 16);
	if (fd < 0)
		return false;
	ssize_t count = read(fd, text, sizeof(text) - 1);
	close(fd);
	for (ssize_t i = 0; i < count && digits < 32; i++) {
		const char *hex = "0123456789abcdef";
		const char *digit = strchr(hex, text[i]);

		if (text[i] == '-' || !digit || !*digit)
			continue;
		id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | (digit - hex));
		digits++;
	}
	return digits == 32;
}
