package main

import (
	"fmt"
	"strings"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/pgjet/pgjet/internal/testenv"
)

// An operator signs accounts, which sign users.
type operator struct {
	m           *trial
	key         nkeys.KeyPair
	token       string
	system, app nkeys.KeyPair // accounts
	systemToken string
	systemID    string
	appID       string
}

func newOperator(m *trial) *operator {
	m.Helper()
	o := &operator{m: m}
	o.key = o.pair(nkeys.CreateOperator)
	o.system, o.app = o.pair(nkeys.CreateAccount), o.pair(nkeys.CreateAccount)
	o.systemID, o.appID = o.public(o.system), o.public(o.app)
	claims := jwt.NewOperatorClaims(o.public(o.key))
	claims.SystemAccount = o.systemID
	o.token = o.sign(claims, o.key)
	o.systemToken = o.sign(jwt.NewAccountClaims(o.systemID), o.key)
	return o
}

func (o *operator) pair(create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	o.m.Helper()
	pair, err := create()
	if err != nil {
		o.m.Fatal(err)
	}
	return pair
}

func (o *operator) public(pair nkeys.KeyPair) string {
	o.m.Helper()
	id, err := pair.PublicKey()
	if err != nil {
		o.m.Fatal(err)
	}
	return id
}

func (o *operator) sign(claims jwt.Claims, by nkeys.KeyPair) string {
	o.m.Helper()
	token, err := claims.Encode(by)
	if err != nil {
		o.m.Fatal(err)
	}
	return token
}

// account returns the token of the account in which pgjet works.
func (o *operator) account(limits jwt.JetStreamLimits) string {
	o.m.Helper()
	claims := jwt.NewAccountClaims(o.appID)
	claims.Limits.JetStreamLimits = limits
	return o.sign(claims, o.key)
}

// creds returns the credentials file of a new user of an account.
func (o *operator) creds(account nkeys.KeyPair) string {
	o.m.Helper()
	user := o.pair(nkeys.CreateUser)
	token := o.sign(jwt.NewUserClaims(o.public(user)), account)
	seed, err := user.Seed()
	if err != nil {
		o.m.Fatal(err)
	}
	text, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		o.m.Fatal(err)
	}
	return write(o.m, "user.creds", string(text))
}

var unlimited = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}

// withMemoryResolver: users are JWTs, and the server knows the accounts from the start.
func withMemoryResolver(m *trial) {
	m.checked = "operator, account and user; a user of another operator is refused"
	o := newOperator(m)
	server := startNATS(m, fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }",
		o.token, o.systemID, o.systemID, o.systemToken, o.appID, o.account(unlimited)))
	stranger := newOperator(m)
	refuses(m, env{"PGJET_NATS_URL": server.URL(), "PGJET_NATS_CREDS": stranger.creds(stranger.app)}, "uthorization")
	creds := o.creds(o.app)
	walk(m, site{
		database: testenv.EmptyDatabaseURL(m), nats: server.URL(), vars: env{"PGJET_NATS_CREDS": creds},
		connect: func() jetstream.JetStream { return connectNATS(m, server.URL(), nats.UserCredentials(creds)) },
	}, nil)
}

// inSignedAccounts: the accounts that pgjet prints, as JWTs. All exports are private: each import
// needs a token of the exporting account.
func inSignedAccounts(m *trial) {
	m.checked = "an account for each process, whose imports are signed by the account that exports"
	o := newOperator(m)
	keys, claims := make(map[string]nkeys.KeyPair), make(map[string]*jwt.AccountClaims)
	accounts := printedAccounts(m)
	for _, a := range accounts {
		keys[a.Name] = o.pair(nkeys.CreateAccount)
		claims[a.Name] = jwt.NewAccountClaims(o.public(keys[a.Name]))
		if a.JetStream {
			claims[a.Name].Limits.JetStreamLimits = unlimited
		}
	}
	kinds := map[string]jwt.ExportType{"service": jwt.Service, "stream": jwt.Stream}
	preload := fmt.Sprintf("%s: %s", o.systemID, o.systemToken)
	creds := make(map[string]string)
	for _, a := range accounts {
		c := claims[a.Name]
		for _, e := range a.Exports {
			export := &jwt.Export{Name: e.Subject, Subject: jwt.Subject(e.Subject), Type: kinds[e.Kind], TokenReq: true}
			if e.Answers == "stream" {
				export.ResponseType = jwt.ResponseTypeStream
			}
			c.Exports.Add(export)
		}
		for _, i := range a.Imports {
			activation := jwt.NewActivationClaims(c.Subject)
			activation.ImportSubject, activation.ImportType = jwt.Subject(i.Subject), kinds[i.Kind]
			c.Imports.Add(&jwt.Import{
				Name: i.Subject, Subject: jwt.Subject(i.Subject), LocalSubject: jwt.RenamingSubject(i.To), Type: kinds[i.Kind],
				Account: o.public(keys[i.Account]), Token: o.sign(activation, keys[i.Account]),
			})
		}
		preload += fmt.Sprintf(", %s: %s", c.Subject, o.sign(c, o.key))
		creds[a.User] = o.creds(keys[a.Name])
	}
	server := startNATS(m, fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s }", o.token, o.systemID, preload))
	walk(m, site{
		database: testenv.EmptyDatabaseURL(m), nats: server.URL(), creds: creds, vars: env{"PGJET_NATS_DOMAIN": accountsDomain}, durables: true,
		connect: func() jetstream.JetStream { return connectNATS(m, server.URL(), nats.UserCredentials(creds[""])) },
	}, nil)
}

// withLimits fills the account's storage, and later raises its limit. The server receives accounts
// in messages.
func withLimits(m *trial) {
	m.checked = "full resolver; the account's storage is full: stream_full, then its limit is raised"
	o := newOperator(m)
	server := startNATS(m, fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: { type: full, dir: %q }\nresolver_preload: { %s: %s }",
		o.token, o.systemID, m.TempDir(), o.systemID, o.systemToken))
	limits := jwt.JetStreamLimits{DiskStorage: 1 << 20, Streams: 1, Consumer: 18} // the directory alone has eight
	o.push(server.URL(), o.account(limits))
	creds := o.creds(o.app)
	walk(m, site{
		database: testenv.EmptyDatabaseURL(m), nats: server.URL(), vars: env{"PGJET_NATS_CREDS": creds},
		connect: func() jetstream.JetStream { return connectNATS(m, server.URL(), nats.UserCredentials(creds)) },
	}, func(p *mainPath) {
		p.fill(30, 64<<10)
		p.relay.NotReady(p.relay.Admin, "stream_full")
		if _, body := get(m, p.relay.Admin+"/readyz"); strings.Count(body, "stream_full") > 1 {
			m.Errorf("the reason is said twice: %s", body)
		}
		limits.DiskStorage = 1 << 30
		o.push(server.URL(), o.account(limits))
		p.ready()
	})
}

// push sends the token of an account to the server.
func (o *operator) push(url, token string) {
	o.m.Helper()
	nc := connectNATS(o.m, url, nats.UserCredentials(o.creds(o.system))).Conn()
	defer nc.Close()
	answer, err := nc.Request("$SYS.REQ.CLAIMS.UPDATE", []byte(token), patience)
	if err != nil || !strings.Contains(string(answer.Data), `"code":200`) {
		o.m.Fatalf("push the account: %v, %s", err, answer.Data)
	}
}

// fill appends large events that no consumer handles.
func (p *mainPath) fill(count, size int) {
	p.Helper()
	_, err := p.db.Exec(p.Context(), `
		insert into pgjet.outbox (id, type, key, data)
		select gen_random_uuid(), 'note.made', 'note', to_json(repeat('x', $2)) from generate_series(1, $1)`, count, size)
	if err != nil {
		p.Fatal(err)
	}
}
