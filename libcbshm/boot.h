/*
 * boot.h - which run of the kernel this is
 *
 * SPDX-License-Identifier: ISC
 *
 * Stamps of CLOCK_MONOTONIC and CLOCK_BOOTTIME mean nothing under another one. Shared by the library and the agent;
 * async-signal-safe.
 */
#ifndef LIBCBSHM_BOOT_H
#define LIBCBSHM_BOOT_H

#include <stdbool.h>
#include <stdint.h>

/* False, and zeros: /proc does not say. */
bool boot_id_read(uint8_t id[16]);

#endif /* LIBCBSHM_BOOT_H */
