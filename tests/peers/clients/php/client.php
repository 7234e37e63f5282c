<?php
// Clients of PHP: prints its version, and what `http://ledger/` answers. `client.php curl`, `client.php streams [PROXY]`.

$url = 'http://ledger/';
$header = 'x-overlay-id: alice';
echo PHP_VERSION, "\n";
if ($argv[1] === 'curl') {
    $asked = curl_init($url);
    curl_setopt_array($asked, [CURLOPT_HTTPHEADER => [$header], CURLOPT_RETURNTRANSFER => true]);
    $answer = curl_exec($asked);
    echo $answer === false ? curl_error($asked) : $answer;
} else {
    $how = ['header' => $header] + (isset($argv[2]) ? ['proxy' => $argv[2], 'request_fulluri' => true] : []);
    echo file_get_contents($url, false, stream_context_create(['http' => $how]));
}
