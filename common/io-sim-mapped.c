// SPDX-License-Identifier: BSD-3-Clause
/* io-sim-mapped: memory that outlives the process, on the simulated machine.
 *
 * It is the machine's, so that another process (io_sim_restart()) finds it as it was
 * when the last one died.  After a power loss it is there, too, as a file system may
 * well leave it: what tells the reader not to believe it is the boot id.
 */
#include "common/io-sim-int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct io_sim *sim_of(struct io *io)
{
	return (struct io_sim *)io;
}

static const char *image_of(struct io_file *f)
{
	return ((struct sim_handle *)f->sim)->file->path;
}

static struct sim_mapped *find(struct io_sim *sim, const char *path)
{
	struct sim_mapped *m = sim->mapped;

	while (m && (m->removed || strcmp(m->path, path)))
		m = m->next;
	return m;
}

int sim_identity(struct io_file *f, struct io_identity *id)
{
	uint64_t boot = sim_of(f->io)->boots + 1;

	*id = (struct io_identity){ .dev = 1, .ino = 5381, .booted = 1 };	/* files have no times here */
	memcpy(id->boot, &boot, sizeof(boot));
	for (const char *p = image_of(f); *p; p++)
		id->ino = id->ino * 33 + (uint8_t)*p;
	return 0;
}

static struct sim_mapped *add(struct io_sim *sim, const char *path, size_t len)
{
	struct sim_mapped *m = calloc(1, sizeof(*m));

	if (m) {
		m->path = strdup(path);
		m->mem = calloc(1, len);
		m->len = len;
	}
	if (!m || !m->path || !m->mem)
		abort();
	m->next = sim->mapped;
	sim->mapped = m;
	return m;
}

int sim_mapped_make(struct io_file *f, const char *dir, size_t len, struct io_mapped **out,
		    struct error *err)
{
	struct io_sim *sim = sim_of(f->io);
	struct sim_mapped *old = find(sim, image_of(f));
	struct io_mapped *m;

	if (sim->dead)
		return error_errno(err, -EIO, "Could not create the crash log");
	if (old)
		old->removed = true;
	m = calloc(1, sizeof(*m));
	if (!m)
		abort();
	m->io = f->io;
	m->sim = add(sim, image_of(f), len);
	m->mem = ((struct sim_mapped *)m->sim)->mem;
	m->len = len;
	*out = m;
	return 0;
}

int sim_mapped_read(struct io_file *f, const char *dir, size_t len, uint8_t **data)
{
	struct sim_mapped *m = find(sim_of(f->io), image_of(f));

	if (sim_of(f->io)->dead)
		return -EIO;
	if (!m || m->len != len)
		return m ? -EINVAL : -ENOENT;
	*data = malloc(len);
	if (!*data)
		abort();
	memcpy(*data, m->mem, len);
	return 0;
}

void sim_mapped_end(struct io_mapped *m, bool remove)
{
	if (!sim_of(m->io)->dead && remove)
		((struct sim_mapped *)m->sim)->removed = true;
	free(m);
}

void sim_mapped_clone(struct io_sim *to, const struct io_sim *from)
{
	for (const struct sim_mapped *m = from->mapped; m; m = m->next)
		if (!m->removed)
			memcpy(add(to, m->path, m->len)->mem, m->kept ? m->kept : m->mem, m->len);
}

void sim_mapped_die(struct io_sim *sim)
{
	for (struct sim_mapped *m = sim->mapped; m; m = m->next) {
		m->kept = malloc(m->len);
		if (!m->kept)
			abort();
		memcpy(m->kept, m->mem, m->len);
	}
}

void sim_mapped_revive(struct io_sim *sim)
{
	for (struct sim_mapped *m = sim->mapped; m; m = m->next) {
		if (m->kept)
			memcpy(m->mem, m->kept, m->len);
		free(m->kept);
		m->kept = NULL;
	}
}

void sim_mapped_free(struct io_sim *sim)
{
	while (sim->mapped) {
		struct sim_mapped *next = sim->mapped->next;

		free(sim->mapped->path);
		free(sim->mapped->mem);
		free(sim->mapped->kept);
		free(sim->mapped);
		sim->mapped = next;
	}
}
