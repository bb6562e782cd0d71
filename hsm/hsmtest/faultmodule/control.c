#include "control.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FILE_MAX = 8192, COUNTERS = 64, NAME_MAX_LEN = 24 };

// counter is how often a function was called, by all processes. The file is an
// array of them, of which CallCounts in package hsmtest reads the first with a name.
struct counter {
	char name[NAME_MAX_LEN];
	uint64_t calls;
};

static char faults_path[PATH_MAX], lock_path[PATH_MAX], new_path[PATH_MAX];
static struct counter *counters; // shared with other processes

// Guards the names of counters against other threads; processes exclude each
// other by the lock file.
static pthread_mutex_t names = PTHREAD_MUTEX_INITIALIZER;

bool control_open(void)
{
	const char *prefix = getenv("KEKD_FAULTS");
	char path[PATH_MAX];
	int fd;

	if (!prefix || strlen(prefix) > PATH_MAX - 20) {
		fprintf(stderr, "kekd-faults: KEKD_FAULTS is not set: give the control file's path, without .faults\n");
		return false;
	}
	snprintf(faults_path, sizeof(faults_path), "%s.faults", prefix);
	snprintf(lock_path, sizeof(lock_path), "%s.faults.lock", prefix);
	snprintf(new_path, sizeof(new_path), "%s.faults.new", prefix);
	snprintf(path, sizeof(path), "%s.faults.counts", prefix);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, COUNTERS * sizeof(struct counter)) != 0) {
		perror("kekd-faults: the file of counters");
		return false;
	}
	counters = mmap(NULL, COUNTERS * sizeof(struct counter), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return counters != MAP_FAILED;
}

// lock keeps other processes, and threads, from the control file until the
// returned descriptor is closed.
static int lock(void)
{
	int fd = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd >= 0)
		flock(fd, LOCK_EX);
	return fd;
}

static void count(const char *call)
{
	int i, fd;

	for (i = 0; i < COUNTERS && counters[i].name[0]; i++)
		if (strcmp(counters[i].name, call) == 0)
			goto found;
	pthread_mutex_lock(&names);
	fd = lock();
	for (i = 0; i < COUNTERS - 1 && counters[i].name[0]; i++)
		if (strcmp(counters[i].name, call) == 0)
			break;
	snprintf(counters[i].name, NAME_MAX_LEN, "%s", call);
	if (fd >= 0)
		close(fd);
	pthread_mutex_unlock(&names);
found:
	__atomic_add_fetch(&counters[i].calls, 1, __ATOMIC_RELAXED);
}

// slurp reads the control file, ended by a NUL; false when there is none.
static bool slurp(char text[FILE_MAX])
{
	int fd = open(faults_path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, text, FILE_MAX - 1);
	close(fd);
	text[n < 0 ? 0 : n] = 0;
	return n > 0;
}

// line_of finds the first line for a call; its end is set too.
static char *line_of(char *text, const char *call, char **end)
{
	size_t len = strlen(call);
	char *line = text;

	while (line) {
		char *stop = strchrnul(line, '\n');
		if (strncmp(line, call, len) == 0 && line[len] == ' ') {
			*end = stop;
			return line;
		}
		line = *stop ? stop + 1 : NULL;
	}
	return NULL;
}

// count_down takes one from the n= of the line between start and end, and the
// line away with the last one. The caller holds the lock.
static void count_down(char *text, char *start, char *end)
{
	char *n = memmem(start, end - start, " n=", 3), *rest;
	char out[FILE_MAX + 32];
	long left = strtol(n + 3, &rest, 10);
	int fd, len;

	if (left > 1)
		len = snprintf(out, sizeof(out), "%.*s n=%ld%s", (int)(n - text), text, left - 1, rest);
	else
		len = snprintf(out, sizeof(out), "%.*s%s", (int)(start - text), text, *end ? end + 1 : end);
	fd = open(new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, out, len) != len || rename(new_path, faults_path) != 0)
		perror("kekd-faults: the control file");
	if (fd >= 0)
		close(fd);
}

static void parse(char *start, char *end, struct fault *f)
{
	char line[512], *word, *save = NULL;

	snprintf(line, sizeof(line), "%.*s", (int)(end - start), start);
	strtok_r(line, " ", &save); // the function's name
	while ((word = strtok_r(NULL, " ", &save))) {
		char *value = strchr(word, '=');
		if (value)
			*value++ = 0;
		else
			value = "";
		if (!strcmp(word, "ms"))
			f->ms = atol(value);
		else if (!strcmp(word, "leak"))
			f->leak = atol(value);
		else if (!strcmp(word, "limit"))
			f->limit = atol(value);
		else if (!strcmp(word, "rv"))
			f->has_rv = true, f->rv = strtoul(value, NULL, 0);
		else if (!strcmp(word, "after"))
			f->after = true;
		else if (!strcmp(word, "hang"))
			f->hang = true;
		else if (!strcmp(word, "crash"))
			f->crash = true;
		else if (!strcmp(word, "abort"))
			f->abort = true;
		else if (!strcmp(word, "exit"))
			f->exit = true;
		else if (!strcmp(word, "logout"))
			f->logout = true;
		else if (!strcmp(word, "closeall"))
			f->closeall = true;
		else if (!strcmp(word, "garble"))
			f->garble = true;
		else if (!strcmp(word, "iv"))
			snprintf(f->iv, sizeof(f->iv), "%s", value);
		else if (!strcmp(word, "print"))
			snprintf(f->print, sizeof(f->print), "%s", value);
		else if (strcmp(word, "n"))
			fprintf(stderr, "kekd-faults: unknown fault %s\n", word);
	}
}

void control_take(const char *call, struct fault *f)
{
	char text[FILE_MAX], *start, *end;

	*f = (struct fault){ .limit = -1 };
	count(call);
	if (!slurp(text) || !(start = line_of(text, call, &end)))
		return;
	if (memmem(start, end - start, " n=", 3)) {
		int fd = lock(); // and look again: another may have taken the last one
		bool left = slurp(text) && (start = line_of(text, call, &end));
		if (left && memmem(start, end - start, " n=", 3)) {
			parse(start, end, f);
			count_down(text, start, end);
			left = false;
		}
		if (fd >= 0)
			close(fd);
		if (!left)
			return;
	}
	parse(start, end, f);
}
