#!/bin/bash
# SPDX-License-Identifier: ISC
#
# The shared library exports what libcbshm/cbshm.sym and the header say, and nothing else; the read path needs libc alone.
. "$(dirname "$0")/lib.sh"

library=$build_dir/libcbshm/.libs/libcbshm.so

# Of the version script: what stands between global: and local:.
intended() {
	sed -n '/global:/,/local:/p' "$source_dir/libcbshm/cbshm.sym" | grep -o 'cbshm_[a-z_]*' | LC_ALL=C sort
}

exported() {
	nm -D --defined-only "$library" | awk '$2 ~ /[TBDRVW]/ { sub(/@.*/, "", $3); print $3 }' | LC_ALL=C sort
}

declared() {
	tr '\n' ' ' <"$source_dir/include/cbshm.h" | grep -o 'CBSHM_PUBLIC[^;]*' | grep -o 'cbshm_[a-z_]*(' |
		tr -d '(' | LC_ALL=C sort
}

exports_intended() { diff <(intended) <(exported); }
declares_intended() { diff <(intended) <(declared); }

# With the static library and nothing else but libc.
reader_links() {
	local program
	program=$(mktemp) || return
	"${CC:-cc}" -I"$source_dir/include" -o "$program" -x c - -x none "${library%.so}.a" <<-'EOF'
		#include <cbshm.h>

		static int each(const struct cbshm_state *state, void *arg)
		{
			(void)state;
			(void)arg;
			return 0;
		}

		int main(void)
		{
			struct cbshm *client;
			struct cbshm_breaker *breaker;
			struct cbshm_state state;
			struct cbshm_health health;
			uint64_t seen = 0;
			int errors = cbshm_open(NULL, &client) | cbshm_breaker_open(client, "a", &breaker) |
				cbshm_breaker_set_stale_policy(breaker, CBSHM_FAIL_OPEN, CBSHM_MAX_STALE_MIN_US) |
				cbshm_get_state(breaker, &state) | cbshm_foreach(client, each, NULL) |
				cbshm_health(client, &health) | cbshm_wait(client, &breaker, 1, &seen, 0);

			cbshm_close(client);
			return errors | cbshm_is_disabled(breaker);
		}
	EOF
	local status=$?
	rm -f "$program"
	return "$status"
}

# A sanitizer brings symbols of its own along.
if [ ! -e "$library" ]; then
	echo "1..0 # SKIP the shared library is not built"
	exit 0
fi
need nm
case_of "exported symbols are those of cbshm.sym" exports_intended
case_of "public functions of cbshm.h are those of cbshm.sym" declares_intended
if [ -e "${library%.so}.a" ]; then
	case_of "a program that only reads needs libc alone" reader_links
fi
done_testing
