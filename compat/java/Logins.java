import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Properties;
import java.util.logging.Level;
import java.util.logging.Logger;
import org.postgresql.util.PSQLException;

/** Logs in by pgjdbc as the lines on its standard input say, and writes what each came to (compat/go/logins). */
public final class Logins {
  private Logins() {}

  public static void main(String[] args) throws Exception {
    Logger.getLogger("org.postgresql").setLevel(Level.OFF);
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      out.println(format(logIn(parse(line))));
    }
  }

  private static Map<String, String> parse(String line) {
    Map<String, String> fields = new HashMap<>();
    for (String field : line.split("\t")) {
      int i = field.indexOf('=');
      fields.put(field.substring(0, i), URLDecoder.decode(field.substring(i + 1), StandardCharsets.UTF_8));
    }
    return fields;
  }

  private static String format(Map<String, String> fields) {
    StringBuilder b = new StringBuilder();
    fields.forEach(
        (name, value) -> b.append(b.length() == 0 ? "" : "\t").append(name).append('=').append(URLEncoder.encode(value, StandardCharsets.UTF_8)));
    return b.toString();
  }

  private static Properties properties(Map<String, String> login) {
    Properties p = new Properties();
    p.setProperty("user", login.get("user"));
    p.setProperty("loginTimeout", "15");
    p.setProperty("gssEncMode", "disable");
    p.setProperty("sslmode", "disable");
    if (!login.get("password").isEmpty()) {
      p.setProperty("password", login.get("password"));
    }
    if (login.get("tls").equals("true")) {
      p.setProperty("sslmode", "verify-full");
      p.setProperty("sslrootcert", login.get("root"));
      p.setProperty("sslcert", login.get("cert"));
      p.setProperty("sslkey", login.get("pk8"));
    }
    if (login.get("direct").equals("true")) {
      p.setProperty("sslNegotiation", "direct");
    }
    if (login.get("bind").equals("true")) {
      p.setProperty("channelBinding", "require");
    }
    return p;
  }

  private static Map<String, String> logIn(Map<String, String> login) {
    Map<String, String> result = new LinkedHashMap<>();
    String url = "jdbc:postgresql://" + login.get("host") + ":" + login.get("port") + "/" + login.get("database");
    try (Connection conn = DriverManager.getConnection(url, properties(login));
        Statement statement = conn.createStatement();
        ResultSet rows = statement.executeQuery(login.get("asks"))) {
      rows.next();
      result.put("user", rows.getString(1));
      result.put("encrypted", String.valueOf(rows.getBoolean(2)));
    } catch (SQLException e) {
      if (e instanceof PSQLException && ((PSQLException) e).getServerErrorMessage() != null) {
        result.put("code", e.getSQLState());
        result.put("message", ((PSQLException) e).getServerErrorMessage().getMessage());
      } else {
        result.put("failure", e.getMessage() + (e.getCause() == null ? "" : ": " + e.getCause().getMessage()));
      }
    }
    return result;
  }
}
