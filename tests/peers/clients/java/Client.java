import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** Clients of Java: prints its version, and what `http://ledger/` answers. */
class Client {
    static final URI ADDRESS = URI.create("http://ledger/");

    public static void main(String[] words) throws Exception {
        System.out.println(System.getProperty("java.version"));
        System.out.print(words[0].equals("client") ? client() : connection());
    }

    static String client() throws Exception {
        var request = HttpRequest.newBuilder(ADDRESS).header("x-overlay-id", "alice").build();
        return HttpClient.newHttpClient().send(request, BodyHandlers.ofString()).body();
    }

    static String connection() throws Exception {
        var connection = (HttpURLConnection) ADDRESS.toURL().openConnection();
        connection.setRequestProperty("x-overlay-id", "alice");
        return new String(connection.getInputStream().readAllBytes());
    }
}
