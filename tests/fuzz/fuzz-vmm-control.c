// SPDX-License-Identifier: BSD-3-Clause
/* Fuzzes the VMM's control socket: the input is what a client sends, after it has negotiated
 * (unless the first byte is '!').  The machine is a dummy, and no merinod is behind it.  What
 * comes back must be a row of messages, and the next client must be answered. */
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <json-c/json.h>

#include "common/co.h"
#include "common/log.h"
#include "common/loop.h"
#include "vmm/control.h"

#define NEGOTIATE "{\"execute\":\"qmp_capabilities\"}\n"
#define LAST "\n{\"execute\":\"query-status\",\"id\":\"last\"}\n"

static struct machine_config machine_config = { .name = "vm1", .vcpus = 2 };
static struct machine machine = { .config = &machine_config };
static char dir[] = "/tmp/fuzz-vmm-control-XXXXXX", path[64];
static struct control *control;
static sem_t done;

void machine_run(struct machine *m) { m->state = RUN_RUNNING; }
void machine_pause(struct machine *m) { m->state = RUN_PAUSED; }
void machine_reset(struct machine *m) { }
void machine_powerdown(struct machine *m) { }
static void quit(void) { }
static pid_t thread_id(unsigned cpu) { return 1000 + (pid_t)cpu; }

const char *run_state_name(enum run_state s)
{
	static const char *const names[] = { "prelaunch", "running", "paused", "shutdown", "internal-error" };

	return names[s];
}

static void start(void *arg)
{
	static const struct control_disk disk = { "disk0", "d" };
	const struct control_config config = {
		.machine = &machine, .path = path, .disks = &disk, .n_disks = 1, .quit = quit,
		.thread_id = thread_id,
	};
	struct error err = ERROR_INIT;

	fuzz_assert(!control_start(&config, &control, &err));
	sem_post(&done);
}

static void on_loop(struct loop_msg *m)
{
	co_start(start, NULL);
}

static void remove_dir(void)
{
	unlink(path);
	rmdir(dir);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static struct loop_msg m = { .fn = on_loop };
	struct error err = ERROR_INIT;
	struct loop *loop;

	log_init("fuzz", LOG_LEVEL_ERROR);
	signal(SIGPIPE, SIG_IGN);
	fuzz_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/qmp", dir);
	sem_init(&done, 0, 0);
	loop = loop_spawn("control", &err);
	fuzz_assert(loop);
	loop_post(loop, &m);
	sem_wait(&done);
	atexit(remove_dir);
	return 0;
}

static int connect_client(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = FUZZ_PATIENCE };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(a.sun_path, path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	fuzz_assert(fd >= 0);
	while (connect(fd, (struct sockaddr *)&a, sizeof(a)))
		fuzz_assert(errno == EINTR);
	return fd;
}

/* Each line is a message. */
static void check(const char *text, size_t len)
{
	struct json_tokener *t = json_tokener_new();

	for (const char *end; len && (end = memchr(text, '\n', len)); ) {
		size_t n = (size_t)(end - text);
		struct json_object *o = json_tokener_parse_ex(t, text, (int)n + 1);

		fuzz_assert(json_object_is_type(o, json_type_object));
		json_object_put(o);
		json_tokener_reset(t);
		text = end + 1;
		len -= n + 1;
	}
	fuzz_assert(len == 0);
	json_tokener_free(t);
}

/* read(), but for libFuzzer's clock, which interrupts it. */
static ssize_t take(int fd, char *to, size_t size)
{
	ssize_t n;

	while ((n = read(fd, to, size)) < 0 && errno == EINTR)
		;
	return n;
}

/* SIZE bytes of DATA, and what comes back: until MUST does, or without one until the server has
 * seen the end and ended, too. */
static void talk(const uint8_t *data, size_t size, bool negotiate, const char *must)
{
	static char out[8 << 20];
	int fd = connect_client();
	size_t len = 0;
	ssize_t n = 0;

	if (negotiate)
		fuzz_assert(write(fd, NEGOTIATE, strlen(NEGOTIATE)) > 0);
	for (size_t at = 0; at < size && (n >= 0 || errno == EINTR); at += n > 0 ? (size_t)n : 0)
		n = write(fd, data + at, size - at);
	if (!must)
		shutdown(fd, SHUT_WR);
	*out = 0;
	while (!(must && strstr(out, must)) && (n = take(fd, out + len, sizeof(out) - 1 - len)) > 0) {
		len += (size_t)n;
		out[len] = 0;
	}
	/* Who is dropped before all that he said was read is reset. */
	fuzz_assert(must ? strstr(out, must) != NULL : n == 0 || errno == ECONNRESET);
	check(out, must ? (size_t)(strrchr(out, '\n') ? strrchr(out, '\n') + 1 - out : 0) : len);
	shutdown(fd, SHUT_WR);		/* until the server has ended, too: what its coroutine holds looks like a leak */
	while (take(fd, out, sizeof(out)) > 0)
		;
	close(fd);
}

int fuzz_input(const uint8_t *data, size_t size)
{
	bool raw = size && *data == '!';

	/* Beyond that answers may wait for a reader while we write. */
	if (size > 16384)
		return 0;
	talk(data + raw, size - raw, !raw, NULL);
	talk((const uint8_t *)LAST, strlen(LAST), true, "\"last\"");
	return 0;
}
