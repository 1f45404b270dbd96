// A family that clone(2) makes: who shares what with whom does not follow from who is whose parent. It says "ready", and for each SIGUSR1 who shares what, as
// kcmp(2) tells, and what each sees of a word that the first process writes to its own memory. With an argument: one whose parent has executed a program.
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MEMBERS = 16, STACK = 65536 };

// Shared by all, whatever else they share.
struct board {
    int pids[MEMBERS];
    int go;
    int seen[MEMBERS];
    int round[MEMBERS];
};

static struct board *board;
static volatile int word;
static int members;
static char stacks[MEMBERS * 3][STACK] __attribute__((aligned(16)));
static int stacks_used;

static void wait_while(int *at, int value) {
    while (__atomic_load_n(at, __ATOMIC_SEQ_CST) == value) syscall(SYS_futex, at, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void post(int *at, int value) {
    __atomic_store_n(at, value, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, at, FUTEX_WAKE, 1000, NULL, NULL, 0);
}

// Tells of each round what it sees.
static void live(int n) {
    post(&board->pids[n], syscall(SYS_getpid));
    for (int round = 0;; round++) {
        wait_while(&board->go, round);
        board->seen[n] = word;
        post(&board->round[n], round + 1);
    }
}

static int born(int (*what)(void *), int flags, int n) {
    int stack = __atomic_fetch_add(&stacks_used, 1, __ATOMIC_SEQ_CST);
    int pid = clone(what, stacks[stack] + STACK, flags, (void *)(long)n);
    if (pid < 0) {
        printf("absent clone\n");
        exit(0);
    }
    return pid;
}

static int lives(void *n) {
    live((long)n);
    return 0;
}

// The flags and numbers of those whom a process bears before it lives or ends.
static int flags_of_next;
static int next_member;
static int ends_after;

static int bears(void *n) {
    born(lives, flags_of_next, next_member);
    wait_while(&board->pids[next_member], 0);
    if (ends_after) syscall(SYS_exit, 0);
    live((long)n);
    return 0;
}

// One that bears another one: with these flags each, and ends after that or lives on. Returns its pid.
static int bearer(int n, int flags, int other, int others_flags, int ends) {
    flags_of_next = others_flags;
    next_member = other;
    ends_after = ends;
    int pid = born(bears, flags, n);
    wait_while(&board->pids[other], 0);
    if (!ends) wait_while(&board->pids[n], 0);
    return pid;
}

// Bears somebody through one that ends, then tells, and lives.
static int has_a_helper(void *n) {
    setsid();
    bearer(-1, CLONE_VM | CLONE_FILES | SIGCHLD, next_member, CLONE_VM | CLONE_FILES | SIGCHLD, 1);
    while (wait(NULL) > 0) {}
    live((long)n);
    return 0;
}

// Bears somebody with its maker's descriptors, and takes its own then.
static int unshares(void *n) {
    born(lives, flags_of_next, next_member);
    wait_while(&board->pids[next_member], 0);
    unshare(CLONE_FILES | CLONE_FS);
    live((long)n);
    return 0;
}

static void member(int (*what)(void *), int n, int flags, int other) {
    next_member = other;
    born(what, flags, n);
    if (other) wait_while(&board->pids[other], 0);
    wait_while(&board->pids[n], 0);
}

static void report(void) {
    static int round;
    word++;
    round++;
    post(&board->go, round);
    for (int n = 1; n < members; n++) wait_while(&board->round[n], round - 1);
    for (int n = 1; n < members; n++) {
        printf("%d sees %d;", n, board->seen[n]);
        for (int other = 0; other < n; other++) {
            printf(" ");
            for (int kind = 1; kind <= 4; kind++)
                printf("%d", syscall(SYS_kcmp, board->pids[n], board->pids[other], kind, 0, 0) == 0);
        }
        printf("\n");
    }
    printf("done\n");
    fflush(stdout);
}

// Bears somebody with everything that it has, and executes a program.
static int executes(void *n) {
    (void)n;
    born(lives, flags_of_next, next_member);
    execl("/bin/sleep", "sleep", "1000", NULL);
    return 1;
}

int main(int argc, char **argv) {
    (void)argv;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    board->pids[0] = getpid();
    if (argc > 1) {
        flags_of_next = CLONE_VM | SIGCHLD;
        next_member = 1;
        born(executes, CLONE_VM | CLONE_VFORK | SIGCHLD, -1);
        wait_while(&board->pids[1], 0);
        members = 2;
        printf("ready\n");
        fflush(stdout);
        for (;;) pause();
    }
    int all = CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND;
    // A child of a child, all with the memory of the first.
    bearer(1, CLONE_VM | SIGCHLD, 2, all | SIGCHLD, 0);
    // A child with its own memory and session, which it shares with one that is its sister by now.
    member(has_a_helper, 3, SIGCHLD, 4);
    // A child of a child has the descriptors of the first, its parent does not.
    flags_of_next = CLONE_FILES | CLONE_FS | SIGCHLD;
    member(unshares, 5, CLONE_FILES | CLONE_FS | SIGCHLD, 6);
    // Sisters without a signal, one with the memory of the first and one with that of her sister's, borne by one that has ended.
    bearer(7, CLONE_VM, 8, CLONE_VM | CLONE_PARENT | CLONE_FS, 0);
    bearer(-1, CLONE_FILES, 9, CLONE_VM | CLONE_FILES | CLONE_PARENT, 1);
    waitpid(-1, NULL, __WCLONE);
    members = 10;
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int got;
        sigwait(&set, &got);
        if (got == SIGUSR1 || got == SIGUSR2) report();
    }
}
