/* Ranks that send to each other in a ring, amounts that change, and know what each number must be. Rank 0 says how far they are. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST 200000

static unsigned number(long round, int rank, int at) { return (unsigned)(round * 31 + rank * 1000003L + at); }

static void wrong(const char *what, long round) {
    printf("wrong %s in round %ld\n", what, round);
    fflush(stdout);
    MPI_Abort(MPI_COMM_WORLD, 1);
}

int main(int argc, char **argv) {
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    unsigned *out = malloc(MOST * sizeof *out), *in = malloc(MOST * sizeof *in);
    int to = (rank + 1) % ranks, from = (rank + ranks - 1) % ranks;
    for (long round = 0;; round++) {
        int count = 1 + (int)(round * 7919 % MOST);
        for (int i = 0; i < count; i++) out[i] = number(round, rank, i);
        MPI_Sendrecv(out, count, MPI_UNSIGNED, to, 0, in, count, MPI_UNSIGNED, from, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        for (int i = 0; i < count; i++)
            if (in[i] != number(round, from, i)) wrong("number", round);
        long all;
        MPI_Allreduce(&round, &all, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
        if (all != round * ranks) wrong("sum", round);
        if (rank == 0 && round % 50 == 0) {
            printf("round %ld\n", round);
            fflush(stdout);
        }
    }
}
