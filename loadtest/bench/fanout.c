/* The other end of the fan-out bench, and its limit: what a bare loop of send() does.
 *
 *   fanout drain PORT N REQUEST   connect N sockets, send REQUEST on each (as it is), then read and
 *                                 drop everything. Prints a line "bytes <total>" for each line read
 *                                 from stdin; ends when stdin does.
 *   fanout send  N FILE ROUNDS    listen on a port of the system's (printed), accept N connections,
 *                                 wait for a line on stdin, then ROUNDS times write FILE's bytes to
 *                                 each of them; prints "seconds <elapsed>".
 *
 * Compiled by fanout.py; loopback only. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static int drain(int port, int n, const char *request) {
    static char buffer[1 << 20];
    struct epoll_event events[512], ev = {.events = EPOLLIN};
    int ep = epoll_create1(0);
    long long total = 0;
    for (int i = 0; i < n; i++) {
        struct sockaddr_in a = loopback(port);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0) die("connect");
        if (*request && write(fd, request, strlen(request)) < 0) die("write");
        fcntl(fd, F_SETFL, O_NONBLOCK);
        ev.data.fd = fd;
        if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) < 0) die("epoll_ctl");
    }
    ev.data.fd = 0;
    if (epoll_ctl(ep, EPOLL_CTL_ADD, 0, &ev) < 0) die("epoll_ctl stdin");
    for (;;) {
        int ready = epoll_wait(ep, events, 512, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            ssize_t got = read(fd, buffer, sizeof buffer);
            if (fd == 0) {
                if (got <= 0) return 0;
                printf("bytes %lld\n", total);
                fflush(stdout);
            } else if (got > 0) {
                total += got;
            } else if (got == 0 || errno != EAGAIN) {
                return 1; /* the other side has gone */
            }
        }
    }
}

static int bare_send(int n, const char *file, int rounds) {
    static char data[1 << 20], line[16];
    int from = open(file, O_RDONLY), listening = socket(AF_INET, SOCK_STREAM, 0);
    int size = read(from, data, sizeof data), one = 1;
    int *fds = calloc(n, sizeof *fds);
    struct sockaddr_in a = loopback(0);
    socklen_t length = sizeof a;
    if (bind(listening, (struct sockaddr *)&a, sizeof a) < 0 || listen(listening, n) < 0)
        die("listen");
    getsockname(listening, (struct sockaddr *)&a, &length);
    printf("port %d\n", ntohs(a.sin_port));
    fflush(stdout);
    for (int i = 0; i < n; i++) {
        if ((fds[i] = accept(listening, NULL, NULL)) < 0) die("accept");
        setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    printf("accepted\n");
    fflush(stdout);
    if (read(0, line, sizeof line) <= 0) return 1;
    double began = now();
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < n; i++)
            for (int done = 0; done < size;) {
                ssize_t sent = send(fds[i], data + done, size - done, MSG_NOSIGNAL);
                if (sent < 0) die("send");
                done += sent;
            }
    printf("seconds %.6f\n", now() - began);
    fflush(stdout);
    if (read(0, line, sizeof line) < 0) return 1; /* keep the sockets until told */
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[1], "drain")) return drain(atoi(argv[2]), atoi(argv[3]), argv[4]);
    if (argc == 5 && !strcmp(argv[1], "send"))
        return bare_send(atoi(argv[2]), argv[3], atoi(argv[4]));
    fprintf(stderr, "usage: see the top of fanout.c\n");
    return 2;
}
