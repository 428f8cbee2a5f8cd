/* SPDX-License-Identifier: BSD-3-Clause */
/* read-small: reads in one go; what the file's length claims is not believed. */
#include "common/read-small.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/loop.h"

struct read_job {
	const char *path;
	size_t max, len;
	uint8_t *data;
	struct stat st;
	int rc;
};

void read_small_free(uint8_t *data, size_t len)
{
	if (data)
		explicit_bzero(data, len);
	free(data);
}

static int read_all(struct read_job *j, int fd)
{
	while (j->len <= j->max) {
		ssize_t n = read(fd, j->data + j->len, j->max + 1 - j->len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		j->len += (size_t)n;
	}
	if (j->len > j->max)
		return -EFBIG;
	j->data[j->len] = 0;
	return 0;
}

/* A pipe that nobody writes to ends at once; one that somebody writes to is waited for. */
static int read_open(struct read_job *j)
{
	int fd = open(j->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), rc = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &j->st) < 0)
		rc = -errno;
	else if (S_ISDIR(j->st.st_mode))
		rc = -EISDIR;
	else if (!S_ISREG(j->st.st_mode) && !S_ISFIFO(j->st.st_mode))
		rc = -EINVAL;
	else if (fcntl(fd, F_SETFL, 0) < 0)
		rc = -errno;
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}

static void read_run(void *arg)
{
	struct read_job *j = arg;
	int fd = read_open(j);

	j->rc = fd;
	if (fd < 0)
		return;
	j->data = malloc(j->max + 1);
	j->rc = j->data ? read_all(j, fd) : -ENOMEM;
	close(fd);
	if (j->rc) {
		read_small_free(j->data, j->len);
		j->data = NULL;
	}
}

int read_small(const char *path, size_t max, uint8_t **data, size_t *len, struct stat *st)
{
	struct read_job j = { .path = path, .max = max };

	loop_work(read_run, &j);
	if (j.rc)
		return j.rc;
	*data = j.data;
	*len = j.len;
	if (st)
		*st = j.st;
	return 0;
}
