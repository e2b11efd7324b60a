# A throw-away authority and two leaves, for the programs that are measured beside the mesh.
set -e
openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ca.key
openssl req -x509 -new -key ca.key -sha256 -days 2 -subj "/O=bench/CN=root" -out ca.pem \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
for who in client server; do
  openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $who.key
  openssl req -new -key $who.key -subj "/O=bench/CN=$who" -out $who.csr
  cat > $who.ext <<EXT
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=URI:spiffe://cluster.local/ns/bench/sa/$who,DNS:$who.bench
EXT
  openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -sha256 -days 2 -extfile $who.ext -out $who.crt 2>/dev/null
  cat $who.crt $who.key > $who.pem
done
chmod 644 ./*.key ./*.pem ./*.crt
