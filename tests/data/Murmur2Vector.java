// Prints murmur2 of keys as Kafka's Java client computes it: one hexadecimal key a line in, "key hash partition-of-12" out.
// java -cp kafka-clients.jar:slf4j-api.jar tests/data/Murmur2Vector.java < keys
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HexFormat;
import org.apache.kafka.common.utils.Utils;

class Murmur2Vector {
    public static void main(String[] arguments) throws Exception {
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            int hash = Utils.murmur2(HexFormat.of().parseHex(line));
            System.out.println(line + "\t" + hash + "\t" + Utils.toPositive(hash) % 12);
        }
    }
}
