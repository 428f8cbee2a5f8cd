// SPDX-License-Identifier: BSD-3-Clause
/* pull-options: the command line of `merino pull`, and which of its words go together.
 *
 * Formats are never guessed: a new image is qcow2 and a previous backup is qcow2
 * unless said otherwise, and an existing image needs its format said, because a
 * raw disk's guest may have written any format's header into it.
 */
#include <stdlib.h>
#include <string.h>

#include "clients/cli.h"
#include "clients/pull.h"
#include "clients/pull-source.h"
#include "common/checked.h"
#include "common/log.h"

enum {
	OPT_BITMAP = CLI_LONG,
	OPT_ONTO,
	OPT_REQUEST_SIZE,
	OPT_FLUSH,
	OPT_NO_FLUSH,
	OPT_FORCE,
	OPT_JSON,
};

enum { REQUESTS_MAX = 1024, REQUEST_SIZE_MAX = 32 << 20, MEMORY_MAX = 1 << 30 };

static const struct cli_option table[] = {
	{ OPT_BITMAP, "bitmap", "NAME", "copy only what this dirty bitmap names" },
	{ 'B', "backing", "FILE", "the previous backup: OUT holds what changed since" },
	{ 'F', "backing-format", "FMT", "format of the previous backup: qcow2 (default) or raw" },
	{ 'f', "format", "FMT", "format of OUT: qcow2 (default for a new OUT) or raw" },
	{ OPT_ONTO, "onto", NULL, "bring the existing OUT up to date (needs --format)" },
	{ OPT_FORCE, "force", NULL, "replace an existing OUT" },
	{ 'C', "connections", "N", "use up to N connections (default 4, 1 without multi-conn)" },
	{ 'R', "requests", "N", "requests in flight on each connection (default 16)" },
	{ OPT_REQUEST_SIZE, "request-size", "N", "longest request in bytes (default 256k)" },
	{ OPT_FLUSH, "flush", NULL, "make OUT durable before exiting (the default)" },
	{ OPT_NO_FLUSH, "no-flush", NULL, "do not wait for the storage" },
	{ 'p', "progress", "[=FD]", "show a progress bar, or write N/100 lines to FD" },
	{ OPT_JSON, "json", NULL, "print the summary as JSON" },
	{ 'q', "quiet", NULL, "print no summary" },
	{ 'h', "help", NULL, "print this text and exit" },
	{ 'V', "version", NULL, "print the version and exit" },
	{ 0 },
};

static void help(void)
{
	printf("usage: merino pull [OPTIONS] URI OUT\n"
	       "Copies a disk, or what a dirty bitmap names of it, from an NBD server.\n\n");
	cli_help(stdout, table);
	printf("\nexamples:\n"
	       "  merino pull nbd://host/vda full.qcow2\n"
	       "  merino pull --bitmap b0 -B full.qcow2 nbd://host/vda monday.qcow2\n"
	       "  merino pull --bitmap b0 --onto -f raw nbd://host/vda copy.raw\n");
}

static enum pull_go bad(const char *text)
{
	log_error("%s; see merino pull --help", text);
	return PULL_EXIT_BAD;
}

static enum pull_go take_format(const char *text, const char *option, const char **name)
{
	if (strcmp(text, "qcow2") && strcmp(text, "raw")) {
		log_error("--%s=%s: the formats are qcow2 and raw", option, text);
		return PULL_EXIT_BAD;
	}
	*name = text;
	return PULL_GO;
}

static enum pull_go take_progress(struct pull_options *o)
{
	int64_t fd;

	o->progress = optarg ? PROGRESS_FD : PROGRESS_BAR;
	fd = optarg ? cli_number("progress", optarg, 0, INT32_MAX) : 0;
	o->progress_fd = fd;
	return fd < 0 ? PULL_EXIT_BAD : PULL_GO;
}

static enum pull_go take_number(unsigned *out, const char *option, unsigned max)
{
	int64_t n = cli_number(option, optarg, 1, max);

	*out = n;
	return n < 0 ? PULL_EXIT_BAD : PULL_GO;
}

static enum pull_go take_request_size(struct pull_options *o)
{
	int64_t n = cli_number("request-size", optarg, 4096, REQUEST_SIZE_MAX);

	o->request_size = n;
	if (n >= 0 && !is_pow2(n))
		return bad("--request-size must be a power of two");
	return n < 0 ? PULL_EXIT_BAD : PULL_GO;
}

static enum pull_go take(struct pull_options *o, int id)
{
	const char *format = NULL;

	switch (id) {
	case OPT_BITMAP: o->bitmap = optarg; return PULL_GO;
	case 'B': o->backing = optarg; return PULL_GO;
	case 'F': return take_format(optarg, "backing-format", &o->backing_format);
	case 'f':
		if (take_format(optarg, "format", &format) != PULL_GO)
			return PULL_EXIT_BAD;
		o->format = strcmp(format, "raw") ? PULL_QCOW2 : PULL_RAW;
		o->format_given = true;
		return PULL_GO;
	case OPT_ONTO: o->onto = true; return PULL_GO;
	case OPT_FORCE: o->force = true; return PULL_GO;
	case 'C': return take_number(&o->connections, "connections", SOURCE_CONNECTIONS);
	case 'R': return take_number(&o->requests, "requests", REQUESTS_MAX);
	case OPT_REQUEST_SIZE: return take_request_size(o);
	case OPT_FLUSH: o->no_flush = false; return PULL_GO;
	case OPT_NO_FLUSH: o->no_flush = true; return PULL_GO;
	case 'p': return take_progress(o);
	case OPT_JSON: o->json = true; return PULL_GO;
	case 'q': o->quiet = true; return PULL_GO;
	case 'h': help(); return PULL_EXIT_OK;
	case 'V': cli_version(); return PULL_EXIT_OK;
	default: return PULL_EXIT_BAD;
	}
}

/* Which words go together. */
static enum pull_go check(const struct pull_options *o)
{
	if (o->bitmap && !*o->bitmap)
		return bad("--bitmap needs a name");
	if (o->onto && (o->backing || o->force))
		return bad("--onto does not go with --backing or --force");
	if (o->onto && !o->format_given)
		return bad("--onto needs --format: an existing image's format is not guessed");
	if (o->backing && o->format == PULL_RAW)
		return bad("a raw image has no backing file: use --onto, or --format qcow2");
	if (o->bitmap && !o->onto && o->format == PULL_RAW)
		return bad("a new raw file cannot tell what the bitmap left out: use --onto on the previous copy");
	if (o->bitmap && !o->onto && !o->backing)
		return bad("what a bitmap names is no backup by itself: give the previous one with "
			   "--backing or --onto");
	if (o->requests * o->request_size * (o->connections ? o->connections : 4) > MEMORY_MAX)
		return bad("connections x requests x request-size is more than 1 GiB");
	return PULL_GO;
}

enum pull_go pull_parse(struct pull_options *o, int argc, char **argv)
{
	struct cli cli;
	int id;

	*o = (struct pull_options){
		.backing_format = "qcow2",
		.requests = 16,
		.request_size = 256 << 10,
	};
	cli_init(&cli, table);
	while ((id = cli_next(&cli, argc, argv)) != -1) {
		enum pull_go go = take(o, id);

		if (go != PULL_GO)
			return go;
	}
	if (argc - optind != 2)
		return bad("give a URI and the name of the output");
	o->uri = argv[optind];
	o->out = argv[optind + 1];
	if (!*o->out)
		return bad("the output's name is empty");
	return check(o);
}
