import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;

/** Threads that hash and leave garbage, while others sleep, wait for each other, and are collected after. */
public class Pool {
    private static final int THREADS = 3;
    private static final int ROUNDS = 60_000;

    private static String hash(int number) throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        byte[] last = {(byte) number};
        TreeMap<String, byte[]> seen = new TreeMap<>();
        for (int i = 0; i < ROUNDS; i++) {
            last = digest.digest(last);
            seen.put(String.format("%02x%02x", last[0], last[1]), last.clone());
        }
        return HexFormat.of().formatHex(last) + " " + seen.size();
    }

    public static void main(String[] arguments) throws Exception {
        var pool = Executors.newFixedThreadPool(THREADS);
        var timer = Executors.newScheduledThreadPool(1);
        var ticks = new java.util.concurrent.atomic.AtomicInteger();
        timer.scheduleAtFixedRate(ticks::incrementAndGet, 1, 2, TimeUnit.MILLISECONDS);
        List<Future<String>> results = new ArrayList<>();
        for (int n = 0; n < THREADS; n++) {
            int number = n;
            results.add(pool.submit(() -> hash(number)));
        }
        for (var result : results) {
            System.out.println(result.get());
        }
        long sum = 0;
        for (int i = 0; i < 100; i++) {
            Thread.sleep(2);
            byte[][] garbage = new byte[200][];
            for (int k = 0; k < garbage.length; k++) {
                garbage[k] = new byte[20_000];
                garbage[k][k] = (byte) i;
                sum += garbage[k][k];
            }
        }
        var counts = new ConcurrentHashMap<Integer, Long>();
        IntStream.range(0, 500_000).parallel().forEach(i -> counts.merge(i % 997, (long) i, Long::sum));
        System.out.println(sum + " " + counts.get(7) + " " + (ticks.get() > 20));
        timer.shutdown();
        pool.shutdown();
    }
}
