// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes what reads a backup repository: a manifest, and files of checksums.
 *
 * The first byte chooses.  A manifest's own checksum is put right first, or nothing would
 * ever get past it; what is accepted can be written, and read the same.  Files of checksums
 * lie over one another: what they say is in order, inside the disk, and has one root.
 */
#include "tests/fuzz/fuzz.h"

#include <json-c/json.h>
#include <sys/mman.h>
#include <unistd.h>

/* clients/ is no library. */
#include "clients/repo-manifest.c"
#include "clients/repo.c"
#include "clients/sums.c"

/* Of repo-clean.c, which needs no fuzzing. */
int repo_clean(struct repo *r, struct error *err)
{
	return 0;
}

static void seal(char *t)
{
	uint8_t sum[SUMS_HASH];
	char hex[2 * SUMS_HASH + 1], *at = find_self(t);

	if (!at)
		return;
	memset(at, '0', 2 * SUMS_HASH);
	sums_hash(t, strlen(t), sum);
	sums_hex(sum, hex);
	memcpy(at, hex, 2 * SUMS_HASH);
}

static void manifest_case(const char *text, size_t n)
{
	struct repo_point p = { .id = "p1" }, q = { .id = "p1" };
	struct error err = ERROR_INIT;
	char *t = strndup(text, n), *again;

	seal(t);
	if (repo_manifest_parse(t, strlen(t), "r", &p, &err) == 0) {
		fuzz_assert(p.readable && p.n > 0 && p.n <= REPO_DISKS);
		again = repo_manifest_text(&p, "r");
		fuzz_assert(repo_manifest_parse(again, strlen(again), "r", &q, &err) == 0);
		fuzz_assert(q.n == p.n && !memcmp(q.root, p.root, SUMS_HASH));
		free(again);
	} else {
		fuzz_assert(err.text[0] && !p.readable);
	}
	repo_point_clear(&p);
	repo_point_clear(&q);
	free(t);
}

/* The bytes, behind a right header, as a file whose hash is known. */
static struct sums_file make_file(const uint8_t *data, size_t n, uint64_t size)
{
	struct sums_file f = { .fd = memfd_create("sums", MFD_CLOEXEC), .name = "sums", .size = size };
	uint8_t *all = calloc(1, HEADER + n);

	memcpy(all, magic, sizeof(magic));
	put_be32(all + 8, 65536);
	put_be64(all + 16, size);
	memcpy(all + HEADER, data, n);
	f.bytes = HEADER + n;
	sums_hash(all, f.bytes, f.hash);
	fuzz_assert(pwrite(f.fd, all, f.bytes, 0) == (ssize_t)f.bytes);
	free(all);
	return f;
}

static void sums_case(const uint8_t *data, size_t n)
{
	uint64_t size = 65536 * 1000 + 7, index, count, at = 0;
	uint8_t hash[SUMS_HASH], root[SUMS_HASH];
	struct error err = ERROR_INIT;
	struct sums_file f[2];
	struct sums *s;
	int kind, rc;

	f[0] = make_file(data, n / 2, size);
	f[1] = make_file(data + n / 2, n - n / 2, size - 65536);
	if (sums_open(f, 2, 65536, &s, &err) < 0)
		return;
	while ((kind = sums_next(s, &index, &count, hash, NULL, &err)) > 0) {
		fuzz_assert(index == at && count > 0);
		at += count;
		fuzz_assert(at <= 1001);
	}
	fuzz_assert(kind < 0 ? err.text[0] : at == 1001);
	rc = sums_root(s, root, &err);
	fuzz_assert((rc < 0) == (kind < 0));
	sums_close(s);
}

int fuzz_input(const uint8_t *data, size_t n)
{
	if (n == 0)
		return 0;
	if (data[0] & 1)
		manifest_case((const char *)data + 1, n - 1);
	else
		sums_case(data + 1, n - 1);
	return 0;
}
