/* A static program with a second thread. Both compute a chain of hashes; the main thread prints the sum. */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t steps;
static __thread uint64_t chain;

static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static void *run(void *start)
{
	chain = *(uint64_t *)start;
	for (uint64_t n = 0; n < steps; n++)
		chain = mix(chain + n);
	*(uint64_t *)start = chain;
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t starts[2] = { 1, 2 };
	pthread_t other;

	steps = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000;
	if (pthread_create(&other, NULL, run, &starts[1])) {
		perror("pthread_create");
		return 1;
	}
	run(&starts[0]);
	if (pthread_join(other, NULL)) {
		perror("pthread_join");
		return 1;
	}
	printf("%016llx\n", (unsigned long long)(starts[0] ^ starts[1]));
	return 0;
}
