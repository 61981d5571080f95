/*
 * Asks a kernel about its PCI and VFIO files, one JSON record a line.
 *
 *   sysprobe dump PATH…      every file below: kind, mode, owner, rdev, size, link text, content
 *   sysprobe ops < SCRIPT    "w PATH TEXT", "r PATH", "o FLAGS PATH", "l PATH", "s PATH" one a line
 *
 * A read or an open that fails is recorded with its errno.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void text(const char *s, ssize_t n)
{
	putchar('"');
	for (ssize_t i = 0; i < n; i++) {
		unsigned char c = s[i];
		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c == '\n')
			printf("\\n");
		else if (c == '\t')
			printf("\\t");
		else if (c < 32 || c > 126)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

static void content(const char *path)
{
	static char buf[65536];
	int fd = open(path, O_RDONLY | O_NONBLOCK);
	if (fd < 0) {
		printf(",\"open\":\"%s\"", strerrorname_np(errno));
		return;
	}
	ssize_t n = read(fd, buf, 4096);
	if (n < 0)
		printf(",\"read\":\"%s\"", strerrorname_np(errno));
	else {
		printf(",\"text\":");
		text(buf, n);
	}
	close(fd);
}

static void dump(const char *path)
{
	struct stat st;
	if (lstat(path, &st) < 0) {
		printf("{\"path\":\"%s\",\"lstat\":\"%s\"}\n", path, strerrorname_np(errno));
		return;
	}
	printf("{\"path\":\"%s\",\"mode\":\"%o\",\"uid\":%u,\"gid\":%u,\"nlink\":%u", path, st.st_mode, st.st_uid, st.st_gid, (unsigned)st.st_nlink);
	if (S_ISLNK(st.st_mode)) {
		char t[4096];
		ssize_t n = readlink(path, t, sizeof t);
		printf(",\"size\":%lld,\"link\":", (long long)st.st_size);
		text(t, n < 0 ? 0 : n);
	} else if (S_ISCHR(st.st_mode)) {
		printf(",\"rdev\":\"%u:%u\"", major(st.st_rdev), minor(st.st_rdev));
	} else if (S_ISREG(st.st_mode)) {
		printf(",\"size\":%lld", (long long)st.st_size);
		const char *base = strrchr(path, '/') + 1;
		if (strncmp(base, "resource", 8) || !base[8])
			content(path);
	}
	printf("}\n");
	if (!S_ISDIR(st.st_mode))
		return;
	struct dirent **names;
	int n = scandir(path, &names, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		if (strcmp(names[i]->d_name, ".") && strcmp(names[i]->d_name, "..")) {
			char sub[4096];
			snprintf(sub, sizeof sub, "%s/%s", path, names[i]->d_name);
			dump(sub);
		}
	}
}

static void result(long r)
{
	if (r < 0)
		printf(",\"errno\":\"%s\"", strerrorname_np(errno));
	else
		printf(",\"ret\":%ld", r);
}

static void op(char *line)
{
	char *a = strchr(line, ' ');
	if (!a)
		return;
	*a++ = 0;
	printf("{\"op\":\"%s\"", line);
	if (*line == 'w') {
		char *t = strchr(a, ' ');
		static char data[8192];
		size_t n = 0;
		*t++ = 0;
		for (; *t; t++) {
			if (*t == '\\' && t[1] == 'n')
				data[n++] = '\n', t++;
			else if (*t == '\\' && t[1] == '0')
				data[n++] = 0, t++;
			else if (*t == '\\' && t[1] == 'x') {
				memset(data + n, 'x', 5000);
				n += 5000, t++;
			} else
				data[n++] = *t;
		}
		printf(",\"path\":\"%s\",\"data\":", a);
		text(data, n > 200 ? 200 : n);
		int fd = open(a, O_WRONLY);
		if (fd < 0) {
			printf(",\"open\":\"%s\"", strerrorname_np(errno));
		} else {
			result(write(fd, data, n));
			close(fd);
		}
	} else if (*line == 'r') {
		printf(",\"path\":\"%s\"", a);
		content(a);
	} else if (*line == 'o') {
		char *p;
		long flags = strtol(a, &p, 8);
		p++;
		printf(",\"flags\":\"%lo\",\"path\":\"%s\"", flags, p);
		int fd = open(p, flags, 0644);
		result(fd < 0 ? -1 : 0);
		if (fd >= 0)
			close(fd);
	} else if (*line == 'l') {
		char t[4096];
		ssize_t n = readlink(a, t, sizeof t);
		printf(",\"path\":\"%s\"", a);
		if (n < 0)
			result(-1);
		else {
			printf(",\"link\":");
			text(t, n);
		}
	} else if (*line == 'n') {
		char *b = strchr(a, ' ');
		*b++ = 0;
		int r = 0;
		printf(",\"call\":\"%s\",\"path\":\"%s\"", a, b);
		if (!strcmp(a, "mkdir"))
			r = mkdir(b, 0755);
		else if (!strcmp(a, "unlink"))
			r = unlink(b);
		else if (!strcmp(a, "rmdir"))
			r = rmdir(b);
		else if (!strcmp(a, "symlink"))
			r = symlink("x", b);
		else if (!strcmp(a, "truncate"))
			r = truncate(b, 0);
		else if (!strcmp(a, "chmod"))
			r = chmod(b, 0600);
		else if (!strcmp(a, "access_w"))
			r = access(b, W_OK);
		else if (!strcmp(a, "access_r"))
			r = access(b, R_OK);
		else if (!strcmp(a, "access_x"))
			r = access(b, X_OK);
		else if (!strcmp(a, "chdir"))
			r = chdir(b);
		result(r);
	} else if (*line == 's') {
		struct stat st;
		printf(",\"path\":\"%s\"", a);
		if (stat(a, &st) < 0)
			result(-1);
		else
			printf(",\"mode\":\"%o\"", st.st_mode);
	}
	printf("}\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "dump")) {
		for (int i = 2; i < argc; i++)
			dump(argv[i]);
	} else {
		char line[16384];
		while (fgets(line, sizeof line, stdin)) {
			line[strcspn(line, "\n")] = 0;
			op(line);
		}
	}
	return 0;
}
