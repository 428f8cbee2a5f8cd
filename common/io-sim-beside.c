// SPDX-License-Identifier: BSD-3-Clause
/* io-sim-beside: files beside an image, and mappings of them, on the simulated machine.
 *
 * A mapping is memory of the process.  What was stored into it becomes part of the file as
 * unsynced writes of single sectors, which is noticed before each operation and at the
 * machine's or the process's death: so a power loss may leave each sector as it was at any of
 * these moments since the last sync, and a kill -9 loses nothing.  To take a file's place is
 * durable and whole.
 */
#include "common/io-sim-int.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct io_sim *sim_of(struct io *io)
{
	return (struct io_sim *)io;
}

static struct sim_file *file_of(struct io_file *f)
{
	return ((struct sim_handle *)f->sim)->file;
}

static char *name_of(struct io_beside_job *j, const char *tail)
{
	char *path = NULL;

	if (asprintf(&path, "%s.%s%s", file_of(j->f)->path, j->suffix, tail) < 0)
		abort();
	return path;
}

/* Who has it open goes on with it; nobody finds it any more. */
static void hide(struct io_sim *sim, const char *path)
{
	struct sim_file *f = sim_file_find(sim, path);

	if (f)
		f->path[0] = '\0';
}

static int open_old(struct io_beside_job *j)
{
	struct io_sim *sim = sim_of(j->io);
	char *path = name_of(j, "");
	struct sim_file *f = sim_file_find(sim, path);

	if (sim->dead || !f) {
		free(path);
		return sim->dead ? -EIO : -ENOENT;
	}
	*j->b = (struct io_beside){ .f = sim_handle_new(sim, f, 0), .path = path };
	return 0;
}

static int make(struct io_beside_job *j)
{
	struct io_sim *sim = sim_of(j->io);
	struct sim_file *f;

	if (sim->dead)
		return -EIO;
	*j->b = (struct io_beside){ .path = name_of(j, ""), .made = name_of(j, ".new") };
	hide(sim, j->b->made);
	f = sim_file_create(sim, j->b->made);
	f->cur_size = f->dur_size = j->len;
	j->b->f = sim_handle_new(sim, f, IO_RDWR | (j->flags & IO_DIRECT));
	return 0;
}

static int keep(struct io_beside *b)
{
	struct io_sim *sim = sim_of(b->f->io);
	struct sim_file *f = file_of(b->f);

	if (sim->dead)
		return -EIO;
	hide(sim, b->path);
	free(f->path);
	f->path = strdup(b->path);
	free(b->made);
	b->made = NULL;
	return 0;
}

static void end(struct io_beside_job *j)
{
	struct io_sim *sim = sim_of(j->io);
	struct sim_file *f = file_of(j->b->f);

	sim_maps_notice(sim);
	if (!sim->dead && (j->remove || j->b->made))
		f->path[0] = '\0';
	io_file_unref(j->b->f);
	free(j->b->made);
	free(j->b->path);
}

static int grow(struct io_beside_job *j)
{
	struct io_sim *sim = sim_of(j->io);

	if (sim->dead)
		return -EIO;
	sim_file_zero(file_of(j->f), ++sim->seq, j->off, j->len, true);
	return 0;
}

static int map(struct io_beside_job *j)
{
	struct io_sim *sim = sim_of(j->io);
	struct sim_map *m = calloc(1, sizeof(*m));

	if (sim->dead) {
		free(m);
		return -EIO;
	}
	m->file = file_of(j->f);
	m->off = j->off;
	m->len = j->len;
	m->mem = aligned_alloc(4096, j->len);
	m->last = calloc(1, j->len);
	sim_file_read(m->file, m->last, j->len, j->off);
	memcpy(m->mem, m->last, j->len);
	m->next = sim->maps;
	sim->maps = m;
	j->mem = m->mem;
	return 0;
}

static void notice(struct io_sim *sim, struct sim_map *m)
{
	for (uint64_t at = 0; at < m->len && m->file; at += SIM_SECTOR) {
		if (!memcmp(m->mem + at, m->last + at, SIM_SECTOR))
			continue;
		memcpy(m->last + at, m->mem + at, SIM_SECTOR);
		sim_file_write(m->file, ++sim->seq, m->last + at, m->off + at, SIM_SECTOR);
	}
}

void sim_maps_notice(struct io_sim *sim)
{
	for (struct sim_map *m = sim->maps; m && !sim->dead; m = m->next)
		notice(sim, m);
}

void sim_maps_die(struct io_sim *sim)
{
	for (struct sim_map *m = sim->maps; m; m = m->next)
		m->file = NULL;
}

static void unmap(struct io_sim *sim, const void *mem)
{
	struct sim_map **p = &sim->maps, *m;

	while (*p && (*p)->mem != mem)
		p = &(*p)->next;
	m = *p;
	assert(m);
	if (!sim->dead)
		notice(sim, m);
	*p = m->next;
	free(m->mem);
	free(m->last);
	free(m);
}

void sim_maps_free(struct io_sim *sim)
{
	while (sim->maps)
		unmap(sim, sim->maps->mem);
}

void sim_beside(struct io_beside_job *j)
{
	j->rc = 0;
	switch (j->call) {
	case BESIDE_OPEN:
		j->rc = open_old(j);
		break;
	case BESIDE_MAKE:
		j->rc = make(j);
		break;
	case BESIDE_KEEP:
		j->rc = keep(j->b);
		break;
	case BESIDE_END:
		end(j);
		break;
	case BESIDE_GROW:
		j->rc = grow(j);
		break;
	case BESIDE_MAP:
		j->rc = map(j);
		break;
	case BESIDE_UNMAP:
		unmap(sim_of(j->io), j->mem);
		break;
	}
}
