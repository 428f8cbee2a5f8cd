// SPDX-License-Identifier: BSD-3-Clause
/* The VMM's control socket: sessions, the machine's commands and events, and a merinod
 * behind it that answers, tells events, goes away and hangs.  The machine is a dummy. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <json-c/json.h>

#include "common/co.h"
#include "common/loop.h"
#include "vmm/control.h"

enum { WAIT_MS = 100000 };

/* -- a dummy machine -------------------------------------------------------- */

static struct machine_config machine_config = { .name = "vm1", .vcpus = 2 };
static struct machine machine = { .config = &machine_config };
static unsigned resets, buttons, quits;

void machine_run(struct machine *m)
{
	m->state = RUN_RUNNING;
}

void machine_pause(struct machine *m)
{
	m->state = RUN_PAUSED;
}

void machine_reset(struct machine *m)
{
	resets++;
}

void machine_powerdown(struct machine *m)
{
	buttons++;
}

const char *run_state_name(enum run_state s);
const char *run_state_name(enum run_state s)
{
	static const char *const names[] = { "prelaunch", "running", "paused", "shutdown", "internal-error" };

	return names[s];
}

static void quit(void)
{
	quits++;
}

static pid_t thread_id(unsigned cpu)
{
	return 1000 + (pid_t)cpu;
}

/* -- the loop that serves ---------------------------------------------------- */

struct rig {
	char dir[32], path[64], merinod[64];
	struct loop *loop;
	struct control *control;
	struct control_config config;
	int server;			/* merinod's socket; -1: none */
	sem_t done;
	int rc;
};

static struct rig *rig;

static void start_control(void *arg)
{
	struct error err = ERROR_INIT;

	rig->rc = control_start(&rig->config, &rig->control, &err);
	sem_post(&rig->done);
}

static void end_control(void *arg)
{
	control_end(rig->control);
	sem_post(&rig->done);
}

struct call {
	struct loop_msg m;
	void (*fn)(void *arg);
};

static void call_on_loop(struct loop_msg *m)
{
	co_start(((struct call *)m)->fn, NULL);
}

static void on_loop(void (*fn)(void *arg))
{
	struct call c = { { .fn = call_on_loop }, fn };

	loop_post(rig->loop, &c.m);
	sem_wait(&rig->done);
}

static int listen_at(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(un.sun_path, path);
	unlink(path);
	assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	assert_int_equal(listen(fd, 8), 0);
	return fd;
}

static void start(bool with_merinod)
{
	static const struct control_disk disks[] = { { "vda", "root" }, { "vdb", "data" } };
	struct error err = ERROR_INIT;

	rig = calloc(1, sizeof(*rig));
	strcpy(rig->dir, "/tmp/vmm-control-XXXXXX");
	assert_non_null(mkdtemp(rig->dir));
	snprintf(rig->path, sizeof(rig->path), "%s/qmp", rig->dir);
	snprintf(rig->merinod, sizeof(rig->merinod), "%s/merinod", rig->dir);
	rig->server = with_merinod ? listen_at(rig->merinod) : -1;
	sem_init(&rig->done, 0, 0);
	rig->loop = loop_spawn("test", &err);
	assert_non_null(rig->loop);
	machine.state = RUN_RUNNING;
	resets = buttons = quits = 0;
	rig->config = (struct control_config){
		.machine = &machine, .path = rig->path, .merinod = with_merinod ? rig->merinod : NULL,
		.disks = disks, .n_disks = 2, .quit = quit, .thread_id = thread_id,
	};
	on_loop(start_control);
	assert_int_equal(rig->rc, 0);
}

static void finish(void)
{
	uint64_t begun = loop_now();

	on_loop(end_control);
	assert_true(loop_now() - begun < 60000000000ull);
	assert_int_equal(access(rig->path, F_OK), -1);
	loop_free(rig->loop);
	if (rig->server >= 0)
		close(rig->server);
	unlink(rig->merinod);
	assert_int_equal(rmdir(rig->dir), 0);
	sem_destroy(&rig->done);
	free(rig);
}

/* -- a peer of a socket ------------------------------------------------------- */

static void readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	assert_int_equal(poll(&p, 1, WAIT_MS), 1);
}

/* One line, which ends with CR and LF; the caller frees the value.  NULL: the end. */
static struct json_object *next(int fd)
{
	static char line[65536];
	struct json_object *o;
	size_t n = 0;

	do {
		ssize_t got;

		readable(fd);
		got = recv(fd, line + n, 1, 0);
		if (got <= 0)
			return NULL;
		n++;
		assert_true(n < sizeof(line));
	} while (line[n - 1] != '\n');
	assert_true(n > 1 && line[n - 2] == '\r');
	line[n] = 0;
	o = json_tokener_parse(line);
	assert_non_null(o);
	return o;
}

static void say(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* The next line is TEXT, apart from spaces and an event's time. */
static void expect(int fd, const char *text)
{
	struct json_object *o = next(fd), *want = json_tokener_parse(text);

	assert_non_null(o);
	assert_non_null(want);
	json_object_object_del(o, "timestamp");
	assert_string_equal(json_object_to_json_string(o), json_object_to_json_string(want));
	json_object_put(o);
	json_object_put(want);
}

static int connect_to(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(un.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	return fd;
}

static int client(void)
{
	int fd = connect_to(rig->path);
	struct json_object *o = next(fd), *qmp;

	assert_true(json_object_object_get_ex(o, "QMP", &qmp));
	assert_true(json_object_object_get_ex(qmp, "version", NULL));
	json_object_put(o);
	return fd;
}

static int ready_client(void)
{
	int fd = client();

	say(fd, "{\"execute\":\"qmp_capabilities\"}");
	expect(fd, "{\"return\":{}}");
	return fd;
}

/* -- the machine -------------------------------------------------------------- */

static void test_session(void **state)
{
	struct stat st;
	int fd;

	start(false);
	assert_int_equal(stat(rig->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	fd = client();
	say(fd, "{\"execute\":\"query-status\",\"id\":7}");
	expect(fd, "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":"
		   "\"Expecting capabilities negotiation with 'qmp_capabilities'\"},\"id\":7}");
	say(fd, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}");
	expect(fd, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"Capability oob not available\"}}");
	say(fd, "{\"execute\":\"qmp_capabilities\"}");
	expect(fd, "{\"return\":{}}");
	say(fd, "{\"execute\":\"query-name\",\"id\":{\"a\":[1]}}{\"execute\":\"query-status\"}");
	expect(fd, "{\"return\":{\"name\":\"vm1\"},\"id\":{\"a\":[1]}}");
	expect(fd, "{\"return\":{\"status\":\"running\",\"singlestep\":false,\"running\":true}}");
	say(fd, "{\"execute\":\"query-name\",\"arguments\":{\"x\":1}}");
	expect(fd, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"Parameter 'x' is unexpected\"}}");
	say(fd, "{\"execute\":\"blockdev-add\",\"id\":\"i\"}");
	expect(fd, "{\"error\":{\"class\":\"CommandNotFound\",\"desc\":"
		   "\"The command blockdev-add has not been found\"},\"id\":\"i\"}");
	say(fd, "[1]");
	expect(fd, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"QMP input must be a JSON object\"}}");
	close(fd);
	finish();
}

static void test_broken_json(void **state)
{
	int fd;

	start(false);
	fd = ready_client();
	say(fd, "{\"execute\" 1}\n{\"execute\":\"query-name\",\"id\":1}");
	json_object_put(next(fd));
	expect(fd, "{\"return\":{\"name\":\"vm1\"},\"id\":1}");
	close(fd);
	finish();
}

/* Both clients get all events, each its own answers. */
static void test_states(void **state)
{
	int a, b;

	start(false);
	a = ready_client();
	b = ready_client();
	say(a, "{\"execute\":\"stop\"}{\"execute\":\"stop\"}{\"execute\":\"query-status\"}");
	expect(a, "{\"event\":\"STOP\"}");
	expect(a, "{\"return\":{}}");
	expect(a, "{\"return\":{}}");
	expect(a, "{\"return\":{\"status\":\"paused\",\"singlestep\":false,\"running\":false}}");
	expect(b, "{\"event\":\"STOP\"}");
	say(b, "{\"execute\":\"cont\",\"id\":1}");
	expect(b, "{\"event\":\"RESUME\"}");
	expect(b, "{\"return\":{},\"id\":1}");
	expect(a, "{\"event\":\"RESUME\"}");
	say(a, "{\"execute\":\"system_powerdown\"}{\"execute\":\"system_reset\"}{\"execute\":\"quit\"}");
	expect(a, "{\"event\":\"POWERDOWN\"}");
	expect(a, "{\"return\":{}}");
	expect(a, "{\"event\":\"RESET\",\"data\":{\"guest\":false,\"reason\":\"host-qmp-system-reset\"}}");
	expect(a, "{\"return\":{}}");
	expect(a, "{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":false,\"reason\":\"host-qmp-quit\"}}");
	expect(a, "{\"return\":{}}");
	finish();
	assert_int_equal(buttons, 1);
	assert_int_equal(resets, 0 + 1);
	assert_int_equal(quits, 1);
	close(a);
	close(b);
}

static void test_cont_after_shutdown(void **state)
{
	int fd;

	start(false);
	machine.state = RUN_SHUTDOWN;
	fd = ready_client();
	say(fd, "{\"execute\":\"cont\"}");
	expect(fd, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"Resetting the Virtual Machine is required\"}}");
	close(fd);
	finish();
}

static void test_cpus_and_disks(void **state)
{
	int fd;

	start(false);
	fd = ready_client();
	say(fd, "{\"execute\":\"query-cpus-fast\"}{\"execute\":\"query-block\"}");
	expect(fd, "{\"return\":["
		   "{\"cpu-index\":0,\"qom-path\":\"/machine/unattached/device[0]\",\"thread-id\":1000,"
		   "\"props\":{\"socket-id\":0,\"core-id\":0,\"thread-id\":0},\"target\":\"x86_64\"},"
		   "{\"cpu-index\":1,\"qom-path\":\"/machine/unattached/device[1]\",\"thread-id\":1001,"
		   "\"props\":{\"socket-id\":0,\"core-id\":1,\"thread-id\":0},\"target\":\"x86_64\"}]}");
	expect(fd, "{\"return\":["
		   "{\"device\":\"\",\"qdev\":\"/machine/peripheral/vda/virtio-backend\",\"type\":\"unknown\","
		   "\"removable\":false,\"locked\":false},"
		   "{\"device\":\"\",\"qdev\":\"/machine/peripheral/vdb/virtio-backend\",\"type\":\"unknown\","
		   "\"removable\":false,\"locked\":false}]}");
	close(fd);
	finish();
}

/* -- merinod behind it --------------------------------------------------------- */

static int accept_merinod(void)
{
	int fd;

	readable(rig->server);
	fd = accept(rig->server, NULL, NULL);
	assert_true(fd >= 0);
	say(fd, "{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n");
	expect(fd, "{\"execute\":\"qmp_capabilities\"}");
	say(fd, "{\"return\":{}}\r\n");
	return fd;
}

static void test_forward(void **state)
{
	int fd, up;

	start(true);
	fd = ready_client();
	up = accept_merinod();
	say(fd, "{\"execute\":\"job-pause\",\"arguments\":{\"id\":\"j\"},\"id\":\"mine\"}{\"execute\":\"query-jobs\"}");
	expect(up, "{\"execute\":\"job-pause\",\"arguments\":{\"id\":\"j\"},\"id\":1}");
	/* Events before and after the answer keep their order; those of the machine are its own. */
	say(up, "{\"event\":\"A\",\"data\":{}}\r\n{\"event\":\"STOP\"}\r\n"
		"{\"return\":{\"x\":[1,null]},\"id\":1}\r\n{\"event\":\"B\"}\r\n");
	expect(fd, "{\"event\":\"A\",\"data\":{}}");
	expect(fd, "{\"return\":{\"x\":[1,null]},\"id\":\"mine\"}");
	expect(up, "{\"execute\":\"query-jobs\",\"id\":2}");
	say(up, "{\"error\":{\"class\":\"DeviceNotFound\",\"desc\":\"no\"},\"id\":2}\r\n");
	expect(fd, "{\"event\":\"B\"}");
	expect(fd, "{\"error\":{\"class\":\"DeviceNotFound\",\"desc\":\"no\"}}");
	close(up);
	close(fd);
	finish();
}

static void test_query_block(void **state)
{
	int fd, up;

	start(true);
	fd = ready_client();
	up = accept_merinod();
	say(fd, "{\"execute\":\"query-block\"}");
	expect(up, "{\"execute\":\"query-block\",\"id\":1}");
	say(up, "{\"return\":[{\"qdev\":\"/machine/peripheral/x/virtio-backend\",\"inserted\":{\"node-name\":\"data\"}},"
		"3,{\"qdev\":\"/machine/peripheral/vda/virtio-backend\",\"inserted\":{\"node-name\":\"n\"}}],\"id\":1}\r\n");
	expect(fd, "{\"return\":["
		   "{\"device\":\"\",\"qdev\":\"/machine/peripheral/vda/virtio-backend\",\"type\":\"unknown\","
		   "\"removable\":false,\"locked\":false,\"inserted\":{\"node-name\":\"n\"}},"
		   "{\"device\":\"\",\"qdev\":\"/machine/peripheral/vdb/virtio-backend\",\"type\":\"unknown\","
		   "\"removable\":false,\"locked\":false,\"inserted\":{\"node-name\":\"data\"}}]}");
	say(fd, "{\"execute\":\"query-commands\"}");
	expect(up, "{\"execute\":\"query-commands\",\"id\":2}");
	say(up, "{\"return\":[{\"name\":\"stop\"},{\"name\":\"job-pause\"}],\"id\":2}\r\n");
	{
		struct json_object *o = next(fd), *list;
		unsigned stops = 0;

		json_object_object_get_ex(o, "return", &list);
		for (size_t i = 0; i < json_object_array_length(list); i++)
			stops += strstr(json_object_to_json_string(json_object_array_get_idx(list, i)),
					"\"stop\"") != NULL;
		assert_int_equal(stops, 1);
		assert_non_null(strstr(json_object_to_json_string(list), "job-pause"));
		json_object_put(o);
	}
	close(up);
	close(fd);
	finish();
}

/* A command that ran there fails; the next one has a new connection. */
static void test_merinod_restarts(void **state)
{
	int fd, up;

	start(true);
	fd = ready_client();
	up = accept_merinod();
	say(fd, "{\"execute\":\"query-jobs\",\"id\":1}");
	json_object_put(next(up));
	close(up);
	{
		struct json_object *o = next(fd);

		assert_non_null(strstr(json_object_to_json_string(o), "went away while it ran 'query-jobs'"));
		json_object_put(o);
	}
	up = accept_merinod();
	say(fd, "{\"execute\":\"query-jobs\",\"id\":2}");
	expect(up, "{\"execute\":\"query-jobs\",\"id\":2}");
	say(up, "{\"return\":[],\"id\":2}\r\n");
	expect(fd, "{\"return\":[],\"id\":2}");
	close(up);
	close(fd);
	finish();
}

/* A merinod that never answers holds up its own command, not the machine's. */
static void test_merinod_hangs(void **state)
{
	int a, b, up;

	start(true);
	a = ready_client();
	up = accept_merinod();
	say(a, "{\"execute\":\"query-jobs\"}");
	json_object_put(next(up));
	b = ready_client();
	say(b, "{\"execute\":\"stop\"}");
	expect(b, "{\"event\":\"STOP\"}");
	expect(b, "{\"return\":{}}");
	expect(a, "{\"event\":\"STOP\"}");
	finish();
	close(a);
	close(b);
	close(up);
}

/* What is no QMP ends the connection, and is not passed on. */
static void test_merinod_lies(void **state)
{
	static const char *const lies[] = {
		"[1,2]\r\n", "nonsense\r\n", "{\"return\":1,\"id\":99}\r\n{\"id\":1}\r\n", "{\"event\":7,\"data\":1}\r\n\xff",
	};
	int fd;

	start(true);
	fd = ready_client();
	for (unsigned i = 0; i < 4; i++) {
		char request[64];
		int up = accept_merinod();

		snprintf(request, sizeof(request), "{\"execute\":\"x-%u\"}", i);
		say(fd, request);
		json_object_put(next(up));
		say(up, lies[i]);
		shutdown(up, SHUT_WR);
		{
			struct json_object *o = next(fd);

			assert_true(json_object_object_get_ex(o, "error", NULL));
			json_object_put(o);
		}
		close(up);
	}
	close(fd);
	finish();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_session),
		cmocka_unit_test(test_broken_json),
		cmocka_unit_test(test_states),
		cmocka_unit_test(test_cont_after_shutdown),
		cmocka_unit_test(test_cpus_and_disks),
		cmocka_unit_test(test_forward),
		cmocka_unit_test(test_query_block),
		cmocka_unit_test(test_merinod_restarts),
		cmocka_unit_test(test_merinod_hangs),
		cmocka_unit_test(test_merinod_lies),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
