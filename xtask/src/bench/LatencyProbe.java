import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Produces at a steady rate to one cluster with the time in each record, consumes the mirrored records from another, and prints the
 * distribution of the age at arrival as one line of JSON. One process, hence one clock.
 *
 * Arguments: source bootstrap, destination bootstrap, topic, partitions, records per second, seconds not counted, seconds counted.
 */
public class LatencyProbe {
    static final int RECORD_BYTES = 1000;
    static final Duration GRACE = Duration.ofSeconds(30);

    public static void main(String[] args) throws Exception {
        String topic = args[2];
        int partitions = Integer.parseInt(args[3]);
        int rate = Integer.parseInt(args[4]);
        long skipped = (long) rate * Integer.parseInt(args[5]);
        long total = skipped + (long) rate * Integer.parseInt(args[6]);

        Map<String, Object> consumerConfig = Map.of("bootstrap.servers", args[1]);
        Map<String, Object> producerConfig = Map.of("bootstrap.servers", args[0], "compression.type", "lz4");
        var bytes = new ByteArraySerializer();
        var consumer = new KafkaConsumer<>(consumerConfig, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        var producer = new KafkaProducer<>(producerConfig, bytes, bytes);
        List<TopicPartition> assigned = new ArrayList<>();
        for (int i = 0; i < partitions; i++) assigned.add(new TopicPartition(topic, i));
        consumer.assign(assigned);
        consumer.seekToEnd(assigned);
        for (TopicPartition partition : assigned) consumer.position(partition);

        AtomicLong failed = new AtomicLong();
        long[] acks = new long[(int) (total - skipped)];
        Thread sender = new Thread(() -> send(producer, topic, partitions, rate, skipped, total, failed, acks));
        sender.start();

        long[] ages = new long[(int) (total - skipped)];
        int counted = 0;
        long received = 0;
        long lastArrival = System.nanoTime();
        while (received < total && System.nanoTime() - lastArrival < GRACE.toNanos()) {
            for (var record : consumer.poll(Duration.ofMillis(100))) {
                long now = System.nanoTime();
                lastArrival = now;
                received++;
                ByteBuffer value = ByteBuffer.wrap(record.value());
                long sentAt = value.getLong();
                if (value.getLong() >= skipped && counted < ages.length) ages[counted++] = now - sentAt;
            }
        }
        sender.join();
        producer.close();
        consumer.close();
        long[] sorted = Arrays.copyOf(ages, counted);
        Arrays.sort(sorted);
        Arrays.sort(acks);
        System.out.printf("{\"sent\": %d, \"received\": %d, \"p50_ms\": %s, \"p99_ms\": %s, \"ack_p50_ms\": %s, \"ack_p99_ms\": %s}%n",
            total - failed.get(), received, millis(sorted, 0.50), millis(sorted, 0.99), millis(acks, 0.50), millis(acks, 0.99));
    }

    static void send(KafkaProducer<byte[], byte[]> producer, String topic, int partitions, int rate, long skipped, long total,
            AtomicLong failed, long[] acks) {
        long start = System.nanoTime();
        for (long i = 0; i < total; i++) {
            long due = start + i * 1_000_000_000L / rate;
            for (long left = due - System.nanoTime(); left > 0; left = due - System.nanoTime()) LockSupport.parkNanos(left);
            byte[] value = new byte[RECORD_BYTES];
            long sentAt = System.nanoTime();
            int place = (int) (i - skipped);
            ByteBuffer.wrap(value).putLong(sentAt).putLong(i);
            producer.send(new ProducerRecord<>(topic, (int) (i % partitions), null, value), (metadata, error) -> {
                if (error != null) failed.incrementAndGet();
                else if (place >= 0) acks[place] = System.nanoTime() - sentAt;
            });
        }
        producer.flush();
    }

    static String millis(long[] sorted, double quantile) {
        if (sorted.length == 0) return "null";
        return String.format(java.util.Locale.ROOT, "%.2f", sorted[(int) (quantile * (sorted.length - 1))] / 1e6);
    }
}
