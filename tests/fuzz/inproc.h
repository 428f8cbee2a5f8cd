/* SPDX-License-Identifier: BSD-3-Clause */
/* inproc: a whole merinod inside the fuzz target, in threads of its own, reached
 * through its sockets as strangers reach it.
 *
 * It is main.c itself, so that what is fuzzed is what runs.  It lives in a directory of
 * its own, which is the current one; "quit" is ignored.  At the end of the process it
 * ends as after SIGTERM, and the sanitizer then looks for leaks.
 */
#ifndef TESTS_FUZZ_INPROC_H
#define TESTS_FUZZ_INPROC_H

#include "nbd-server/daemon.h"

int merinod_main(int argc, char **argv);
void merinod_quit(void);
#define main(c, v) merinod_main(c, v)
#define daemon_quit(none) merinod_quit(none)
#include "nbd-server/main.c"
#undef main
#undef daemon_quit

#include <poll.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "format/qcow2.h"
#include "tests/fuzz/fuzz.h"

static char inproc_dir[] = "/dev/shm/merino-fuzz-XXXXXX";
static char **inproc_argv;
static pthread_t inproc_thread;

void daemon_quit(void)
{
}

static void inproc_quit_message(struct loop_msg *m)
{
	merinod_quit();
}

static void *inproc_main(void *arg)
{
	int argc = 0;

	while (inproc_argv[argc])
		argc++;
	merinod_main(argc, inproc_argv);
	return NULL;
}

static void inproc_end(void)
{
	static struct loop_msg quit = { .fn = inproc_quit_message };
	char cmd[64];

	loop_post(the_daemon.main, &quit);
	pthread_join(inproc_thread, NULL);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", inproc_dir);
	fuzz_assert(!system(cmd));
}

static void inproc_enter_dir(void)
{
	fuzz_assert(mkdtemp(inproc_dir) && !chdir(inproc_dir));
}

static void inproc_make_qcow2(const char *path, uint64_t size)
{
	struct qcow2_create o = { .size = size, .cluster_size = 4096 };
	struct error err = ERROR_INIT;
	struct io_file *f = io_open(io_blocking(), path, IO_RDWR | IO_CREATE, &err);

	fuzz_assert(f && !qcow2_create(f, &o, &err));
	io_file_unref(f);
}

static void inproc_make_raw(const char *path, uint64_t size)
{
	FILE *f = fopen(path, "w");

	fuzz_assert(f && !ftruncate(fileno(f), (off_t)size) && fputs("some data", f) > 0 && !fclose(f));
}

/* ARGV must end with --pidfile pid.  Returns when the daemon is ready. */
static void inproc_start(char **argv)
{
	struct stat st;

	inproc_argv = argv;
	fuzz_assert(!pthread_create(&inproc_thread, NULL, inproc_main, NULL));
	while (stat("pid", &st) || !st.st_size)
		usleep(1000);
	log_init("fuzz", LOG_LEVEL_NONE);
	atexit(inproc_end);
}

static int inproc_connect(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(a.sun_path, path);
	fuzz_assert(fd >= 0);
	while (connect(fd, (struct sockaddr *)&a, sizeof(a)))
		fuzz_assert(errno == EINTR);		/* libFuzzer's clock */
	return fd;
}

/* Sends DATA, says that nothing more comes, and takes all that is answered (at most
 * MAX bytes of it are kept in ANSWER).  Returns how much that was.  Both directions
 * at once: a server may rightly stop reading while it is not read from. */
static size_t inproc_exchange(int fd, const uint8_t *data, size_t size, uint8_t *answer, size_t max)
{
	static uint8_t rest[65536];
	size_t sent = 0, got = 0;
	bool open = true;

	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN | (open ? POLLOUT : 0) };
		ssize_t n;

		if (poll(&p, 1, -1) < 0)
			continue;		/* libFuzzer's clock */
		if (open && (p.revents & (POLLOUT | POLLERR))) {
			n = sent < size ? send(fd, data + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT) : 0;
			sent += n > 0 ? (size_t)n : 0;
			if (sent == size || (n < 0 && errno != EAGAIN)) {
				open = false;
				shutdown(fd, SHUT_WR);
			}
		}
		if (!(p.revents & (POLLIN | POLLHUP | POLLERR)))
			continue;
		n = recv(fd, got < max ? answer + got : rest, got < max ? max - got : sizeof(rest), MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			return got;
		got += n > 0 ? (size_t)n : 0;
	}
}

/* Runs FN in a coroutine on the daemon's main loop, and waits. */
struct inproc_job {
	struct loop_msg msg;
	void (*fn)(void);
	sem_t done;
};

static void inproc_job_run(void *arg)
{
	struct inproc_job *j = arg;

	j->fn();
	sem_post(&j->done);
}

static void inproc_job_start(struct loop_msg *m)
{
	co_start(inproc_job_run, m);
}

static inline void inproc_call(void (*fn)(void))
{
	struct inproc_job j = { .msg.fn = inproc_job_start, .fn = fn };

	sem_init(&j.done, 0, 0);
	loop_post(the_daemon.main, &j.msg);
	while (sem_wait(&j.done))
		;
	sem_destroy(&j.done);
}

#endif
