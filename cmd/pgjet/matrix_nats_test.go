package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/pgjet/pgjet/internal/devserver"
	"github.com/pgjet/pgjet/internal/testenv"
)

// natsRows are environments that differ in NATS.
func natsRows() []matrixRow {
	return []matrixRow{
		{name: "NATS: TLS, NKey", short: true, run: withTLSAndNKey},
		{name: "NATS: client certificates", run: withClientCertificates},
		{name: "NATS: JWT, memory resolver", run: withMemoryResolver},
		{name: "NATS: JWT, account with limits", run: withLimits},
		{name: "NATS: JWT, accounts of roles", run: inSignedAccounts},
		{name: "NATS: leaf node, domain", run: onLeafNode},
		{name: "NATS: mirror and source", run: withMirrorAndSource},
		{name: "NATS: cluster, rolling restarts", run: onCluster},
		{name: "NATS: accounts, cluster", run: inAccounts},
		{name: "NATS: readers", run: withReaders},
		{name: "nats-server " + natsOld, run: func(m *trial) { onNATSVersion(m, natsOld) }},
		{name: "nats-server " + natsNew, run: func(m *trial) { onNATSVersion(m, natsNew) }},
		{name: "nats-server " + natsRefused, run: refusesNATS},
	}
}

// startNATS starts a server with that configuration.
func startNATS(m *trial, config string) *devserver.NATS {
	m.Helper()
	n, err := devserver.StartNATS(devserver.NATSOptions{Dir: m.TempDir(), Lazy: true, Config: config})
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(n.Stop)
	return n
}

// connectNATS returns a connection of the test's own.
func connectNATS(m *trial, url string, options ...nats.Option) jetstream.JetStream {
	m.Helper()
	nc, err := nats.Connect(url, append(options, nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))...)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		m.Fatal(err)
	}
	return js
}

// refuses checks that a command which needs NATS cannot reach it with these variables, and reports
// this reason.
func refuses(m *trial, vars env, word string) {
	m.Helper()
	code, process := runProcess(m, vars, "stream", "ensure")
	if code != exitUnreachable || !strings.Contains(process.Stderr.String(), word) {
		m.Errorf("exit code %d, want %d and %q, of %s", code, exitUnreachable, word, process)
	}
}

// write writes a file that its owner alone may read.
func write(m *trial, name, text string) string {
	m.Helper()
	path := filepath.Join(m.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		m.Fatal(err)
	}
	return path
}

// A pki is the certificate authority of one row.
type pki struct {
	m    *trial
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	ca   string // its file
}

func newPKI(m *trial) *pki {
	m.Helper()
	p := &pki{m: m}
	p.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	p.ca, _, p.key = p.issue(p.cert)
	return p
}

// issue returns the files of a certificate and its key. The first one signs itself.
func (p *pki) issue(template *x509.Certificate) (certFile, keyFile string, key *ecdsa.PrivateKey) {
	p.m.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.m.Fatal(err)
	}
	signer := p.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, p.cert, &key.PublicKey, signer)
	if err != nil {
		p.m.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.m.Fatal(err)
	}
	certFile = write(p.m, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	keyFile = write(p.m, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return certFile, keyFile, key
}

// leaf returns the files of a certificate for this machine.
func (p *pki) leaf(name string) (certFile, keyFile string) {
	p.m.Helper()
	certFile, keyFile, _ = p.issue(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	return certFile, keyFile
}

// withTLSAndNKey: the server has a certificate of a private CA, and the user is an NKey.
func withTLSAndNKey(m *trial) {
	m.checked = "refused without the CA, with another one, without TLS, without the NKey"
	authority := newPKI(m)
	cert, key := authority.leaf("nats")
	user, err := nkeys.CreateUser()
	if err != nil {
		m.Fatal(err)
	}
	public, _ := user.PublicKey()
	seed, _ := user.Seed()
	server := startNATS(m, fmt.Sprintf("tls { cert_file: %q, key_file: %q }\nauthorization { users: [ { nkey: %s } ] }", cert, key, public))
	vars := env{"PGJET_NATS_CA": authority.ca, "PGJET_NATS_NKEY": write(m, "user.nk", string(seed))}

	refuses(m, env{"PGJET_NATS_URL": server.URL(), "PGJET_NATS_NKEY": vars["PGJET_NATS_NKEY"]}, "certificate")
	refuses(m, env{"PGJET_NATS_URL": server.URL(), "PGJET_NATS_NKEY": vars["PGJET_NATS_NKEY"], "PGJET_NATS_CA": newPKI(m).ca}, "certificate")
	refuses(m, env{"PGJET_NATS_URL": server.URL(), "PGJET_NATS_CA": authority.ca}, "uthorization")
	refuses(m, env{"PGJET_NATS_URL": testenv.NATS(m).URL(), "PGJET_NATS_CA": authority.ca}, "secure")

	option, err := nats.NkeyOptionFromSeed(vars["PGJET_NATS_NKEY"])
	if err != nil {
		m.Fatal(err)
	}
	walk(m, site{
		database: testenv.EmptyDatabaseURL(m), nats: server.URL(), vars: vars,
		connect: func() jetstream.JetStream { return connectNATS(m, server.URL(), nats.RootCAs(authority.ca), option) },
	}, nil)
}

// withClientCertificates: a client's certificate identifies it. A configuration file names the
// certificates.
func withClientCertificates(m *trial) {
	m.checked = "by a configuration file; refused without a certificate, and with that of a stranger"
	authority := newPKI(m)
	cert, key := authority.leaf("nats")
	clientCert, clientKey := authority.leaf("pgjet")
	strangerCert, strangerKey := newPKI(m).leaf("pgjet")
	server := startNATS(m, fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify_and_map: true }\n"+
		"authorization { users: [ { user: \"CN=pgjet\" } ] }", cert, key, authority.ca))
	config := func(cert, key string) string {
		text := fmt.Sprintf("nats_url: %s\nnats_ca: %s\n", server.URL(), authority.ca)
		if cert != "" {
			text += fmt.Sprintf("nats_cert: %s\nnats_key: %s\n", cert, key)
		}
		return write(m, "pgjet.yaml", text)
	}
	refuses(m, env{"PGJET_CONFIG": config("", "")}, "tls")
	refuses(m, env{"PGJET_CONFIG": config(strangerCert, strangerKey)}, "tls")
	walk(m, site{
		database: testenv.EmptyDatabaseURL(m), nats: server.URL(), vars: env{"PGJET_CONFIG": config(clientCert, clientKey)},
		connect: func() jetstream.JetStream {
			return connectNATS(m, server.URL(), nats.RootCAs(authority.ca), nats.ClientCert(clientCert, clientKey))
		},
	}, nil)
}

// A hub is a server with a JetStream domain, and a leaf node of it that has another.
type hub struct {
	server, leaf *devserver.NATS
}

func startHub(m *trial, leafConfig string) hub {
	m.Helper()
	port := freePort(m)
	return hub{
		startNATS(m, fmt.Sprintf("server_name: hub\njetstream { domain: hub }\nleafnodes { listen: \"127.0.0.1:%d\" }", port)),
		startNATS(m, fmt.Sprintf("server_name: leaf\njetstream { domain: leaf }\nleafnodes { remotes: [ { url: \"nats://127.0.0.1:%d\" } ], reconnect: 1s }\n%s", port, leafConfig)),
	}
}

// freePort returns a port that is free at the moment.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp4", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// onLeafNode: all processes connect to a leaf node, and the stream is in the hub's domain.
// Each has a user of its own, with the permissions that pgjet prints and no others.
func onLeafNode(m *trial) {
	m.checked = "all processes at the leaf, each with its permissions; the stream in the hub's domain"
	roles := map[string][]string{
		"writer": {"writer"}, "relay": {"relay"}, "operator": {"operator"},
		"welcome-mailer": {"consumer", "--consumer", "welcome-mailer"}, "directory": {"consumer", "--consumer", "directory"},
	}
	var users strings.Builder
	for user, words := range roles {
		code, process := runProcess(m, nil, append([]string{"nats", "permissions", "--nats-domain", "hub"}, words...)...)
		if code != exitOK {
			m.Fatalf("exit code %d of %s", code, process)
		}
		fmt.Fprintf(&users, "{ user: %s, password: %s\n%s}\n", user, secret, process.Stdout.String())
	}
	h := startHub(m, "authorization { users: [\n"+users.String()+"{ user: test, password: test }\n] }")
	urls := make(map[string]string)
	for user := range roles {
		urls[user] = strings.Replace(h.leaf.URL(), "nats://", "nats://"+user+":"+secret+"@", 1)
	}
	walk(m, site{
		database: testenv.EmptyDatabaseURL(m), nats: h.leaf.URL(), urls: urls, vars: env{"PGJET_NATS_DOMAIN": "hub"}, durables: true,
		connect: func() jetstream.JetStream { return testenv.Connect(m, h.server.URL()) },
	}, nil)
	if _, err := testenv.Connect(m, strings.Replace(h.leaf.URL(), "nats://", "nats://test:test@", 1)).Stream(m.Context(), "EVENTS"); err == nil {
		m.Error("the leaf's own domain has a stream EVENTS, too")
	}
}

// withMirrorAndSource: streams of another domain copy the stream.
func withMirrorAndSource(m *trial) {
	m.checked = "a mirror and a sourcing stream in a leaf's domain hold the same, in the same order"
	h := startHub(m, "")
	js := testenv.Connect(m, h.leaf.URL())
	origin := &jetstream.StreamSource{Name: "EVENTS", Domain: "hub"}
	copies := []jetstream.StreamConfig{{Name: "MIRROR", Mirror: origin}, {Name: "SOURCING", Sources: []*jetstream.StreamSource{origin}}}
	p := walk(m, site{database: testenv.EmptyDatabaseURL(m), nats: h.server.URL()}, func(*mainPath) {
		for _, c := range copies {
			if _, err := js.CreateStream(m.Context(), c); err != nil {
				m.Fatalf("create stream %s: %v", c.Name, err)
			}
		}
	})
	want := readStream(m, p.js, "EVENTS")
	for _, c := range copies {
		testenv.Eventually(m, matrixPatience, c.Name+" has all messages", func() bool {
			s, err := js.Stream(m.Context(), c.Name)
			return err == nil && s.CachedInfo().State.Msgs >= uint64(len(want))
		})
		if got := readStream(m, js, c.Name); !slices.Equal(got, want) {
			m.Errorf("%s holds %d messages that differ from the %d of the stream", c.Name, len(got), len(want))
		}
	}
}

// onCluster restarts each of three servers in turn while users sign up.
func onCluster(m *trial) {
	m.checked = "three replicas, each server restarted in turn while people sign up"
	c := testenv.NATSCluster(m, true, "")
	walk(m, site{database: testenv.EmptyDatabaseURL(m), nats: c.URL(), replicas: 3}, func(p *mainPath) {
		for i := range 3 {
			c.Stop(i)
			p.load()
			c.Restart(i)
			c.Ready()
		}
	})
}

// inAccounts: each process is in an account of its own, in a cluster of which each server is
// restarted in turn.
func inAccounts(m *trial) {
	m.checked = "an account for each process; three replicas, each server restarted in turn"
	c := testenv.NATSCluster(m, true, "no_auth_user: test\n"+accountsConfig(m))
	urls := make(map[string]string)
	for _, user := range []string{"operator", "relay", "writer", "welcome-mailer", "directory"} {
		urls[user] = strings.ReplaceAll(c.URL(), "nats://", "nats://"+user+":"+secret+"@")
	}
	s := site{
		database: testenv.EmptyDatabaseURL(m), nats: c.URL(), urls: urls, vars: env{"PGJET_NATS_DOMAIN": accountsDomain},
		replicas: 3, standbys: true, durables: true,
	}
	walk(m, s, func(p *mainPath) {
		for i := range 3 {
			c.Stop(i)
			p.load()
			c.Restart(i)
			c.Ready()
		}
	})
}

// onNATSVersion runs a nats-server of another version.
func onNATSVersion(m *trial, version string) {
	server := startNATSProgram(m, version)
	m.checked = "nats-server " + version + " in a process of its own, killed and started again"
	walk(m, site{database: testenv.EmptyDatabaseURL(m), nats: server.URL()}, func(p *mainPath) {
		server.Kill()
		p.load()
		server.Start()
	})
}

// refusesNATS: a server that is too old is refused, with the version that is needed.
func refusesNATS(m *trial) {
	m.checked = "refused with the version that is needed"
	server := startNATSProgram(m, natsRefused)
	database := testenv.DatabaseURL(m)
	vars := env{"PGJET_NATS_URL": server.URL(), "PGJET_DATABASE_URL": database}
	code, process := runProcess(m, vars, "stream", "ensure")
	if said := process.Stderr.String(); code == exitOK || !strings.Contains(said, "2.14") || !strings.Contains(said, natsRefused[1:]) {
		m.Errorf("exit code %d, want another one and the versions 2.14 and %s, of %s", code, natsRefused[1:], process)
	}
	if _, err := testenv.Connect(m, server.URL()).Stream(m.Context(), "EVENTS"); err == nil {
		m.Error("stream ensure created the stream")
	}
	smtp, _ := startMail(m, anyPort)
	for _, words := range [][]string{{"relay"}, {"consume", "welcome-mailer", "--smtp-url", "smtp://" + smtp + "?tls=off"}} {
		s := &service{Process: start(m, vars, append(words, "--admin-addr", anyPort)...)}
		s.Admin = s.Logged("starting", "admin")
		s.NotReady(s.Admin, "2.14")
	}
}
