/*
 * hash.h - SipHash-2-4, the keyed hash of the segment's index
 *
 * SPDX-License-Identifier: ISC
 */
#ifndef LIBCBSHM_HASH_H
#define LIBCBSHM_HASH_H

#include <stddef.h>
#include <stdint.h>

/*
 * SipHash-2-4 (Aumasson and Bernstein) of `length` bytes. The key is the 16 bytes of the paper read
 * as two little-endian words. Async-signal-safe.
 */
uint64_t hash_siphash(const uint64_t key[2], const void *data, size_t length);

#endif /* LIBCBSHM_HASH_H */
