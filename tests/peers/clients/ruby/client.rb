# Net::HTTP: prints its version, and what `http://ledger/` answers.

require "net/http"

puts RUBY_VERSION
puts Net::HTTP.get(URI("http://ledger/"), { "x-overlay-id" => "alice" })
