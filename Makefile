# What one types. 'make help' lists the targets.

.PHONY: help run screenshots console-speed build test race schedules interfaces demo-recovery chaos powercut mutants bench bench-quick bench-test examples-test deploy-test release-check alerts guide check lint fmt compose-test matrix facts scale

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: ## start everything on this machine: ./bin/pgjet dev (ARGS="--port 7500" moves the ports)
	@echo "compiling pgjet; the first time takes a minute or two, then seconds"
	@go build -o bin/pgjet ./cmd/pgjet
	@echo "./bin/pgjet dev $(ARGS)"
	@exec ./bin/pgjet dev $(ARGS)

build: ## build bin/pgjet, static
	CGO_ENABLED=0 go build -trimpath -o bin/pgjet ./cmd/pgjet

# The packages whose tests take long begin first.
SLOWEST = ./cmd/pgjet ./consumers ./internal/tests/chaos ./internal/tests/console ./relay ./producer ./consumers/replay ./internal/tests/guide ./consumers/saga

# 'make check' vets the tests, too.
test: ## run all tests, with PostgreSQL and NATS servers that they start themselves
	go test -vet=off -shuffle=on -parallel 4 -timeout 15m $(SLOWEST) $$(go list ./... | grep -vxE "$$(go list $(SLOWEST) | paste -sd '|')")
	go test -vet=off -race ./events ./outbox/... ./relay/protocol ./internal/breaker ./internal/health ./internal/session ./internal/supervisor
	go test -vet=off -race -run '^TestSchedules$$' ./consumers

race: ## run all tests with the race detector, for half an hour
	go test -race -shuffle=on -timeout 30m ./...

schedules: ## run simulated schedules of the consumers, and see that they catch each guard that is taken away
	go test -run '^TestSchedules' ./consumers

interfaces: ## check the API, the schemas, a client and the metrics with tools of others; needs Node.js 20 and promtool
	.ci/interfaces/run

screenshots: ## take a picture of each page of the console, light and dark, into bin/screenshots; needs chromium
	mkdir -p bin/screenshots
	PGJET_SCREENSHOTS=$(CURDIR)/bin/screenshots go test -count=1 -run '^TestEveryPage$$' ./internal/tests/console

console-speed: ## measure the pages of the console with 1 M events, 100 000 dead letters and 50 consumers, some ten minutes, on a machine that does nothing else; Linux
	PGJET_CONSOLE_SPEED=1 go test -count=1 -timeout 30m -v -run '^TestSpeed$$' ./console

demo-recovery: ## show what goes wrong with consumers, and how it is put right; needs curl and psql
	go build -o bin/pgjet ./cmd/pgjet
	docs/demo-recovery.sh

chaos: ## kill, freeze, cut and fill for up to 20 minutes; PGJET_CHAOS=0.2 does a fifth of it
	PGJET_CHAOS=$${PGJET_CHAOS:-1} go test -count=1 -p 1 -timeout 20m -v -run '^TestChaos' ./internal/tests/chaos ./consumers/... ./producer

matrix: ## run the main path in some thirty surroundings of PostgreSQL and NATS, up to 20 minutes; PGJET_PG_BINS names further programs
	PGJET_MATRIX=1 go test -count=1 -parallel 3 -timeout 20m -v -run '^TestMatrix$$' ./cmd/pgjet

scale: ## measure what operators ask, with 10 million rows of the outbox and a million dead letters, some minutes; needs 6 GB of disk
	PGJET_SCALE=1 go test -count=1 -timeout 30m -v -run '^TestAtScale$$' ./cmd/pgjet

facts: ## check what the relay and the consumers rely on in nats-server, on three servers too, up to 10 minutes
	PGJET_FACTS=1 go test -count=1 -p 1 -timeout 20m -v -run '^(TestFacts|TestWrongExpectedIDKillsReplicas$$|TestCaughtUpReplicaKnowsNoID$$|TestAddedReplicasKnowNoID$$)' ./relay ./consumers

powercut: ## cut the power of the NATS server's disk: needs root and loop devices, and says so where it cannot run
	PGJET_POWERCUT=1 go test -count=1 -timeout 5m -v -run '^TestPowerCut$$' ./internal/tests/chaos

# What takes too long counts neither way, so the limit is wide. gremlins ignores its flag for the threshold, and obeys the file.
MUTANTS = GOFLAGS=-count=1 go run github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0 unleash --config $(CURDIR)/internal/tests/mutants.yaml --workers 1 --timeout-coefficient 10

mutants: ## change one condition or sum at a time: the own tests of what decides have to notice 85 %; up to three hours
	for package in events relay/protocol internal/auth internal/breaker; do $(MUTANTS) ./$$package || exit; done
	# What these add are texts of SQL, and times.
	for package in consumers/inbox internal/service internal/operate; do $(MUTANTS) --arithmetic-base=false ./$$package || exit; done
	# The tests of outbox are a package of their own: a copy without all others runs them.
	rm -rf bin/mutants && mkdir -p bin/mutants && git ls-files | tar -c -T - | tar -x -C bin/mutants
	cd bin/mutants && find . -name '*_test.go' ! -path './outbox/*' ! -path './internal/tests/outbox/*' -delete && $(MUTANTS) --integration ./outbox

compose-test: ## run compose.yaml on a Docker engine, kill and stop what it starts; says so where there is no engine
	PGJET_COMPOSE=1 go test -count=1 -timeout 60m -v -run '^TestComposeRun$$' ./cmd/pgjet

bench: ## measure pgjet beside its peers and its limits, about half an hour; ARGS="-only drain -rounds 5"
	cd bench && go build -o ../bin/bench .
	./bin/bench -json bin/bench.json -plots bin/bench-plots $(ARGS)

bench-quick: ## bench with a smaller load, up to 3 minutes
	cd bench && go build -o ../bin/bench .
	./bin/bench -quick -json bin/bench.json -plots bin/bench-plots $(ARGS)

bench-test: ## check and test the benchmarks themselves; downloads the peers
	cd bench && go vet ./... && go mod tidy -diff && go test -vet=off -timeout 10m ./...

examples-test: ## check and run the examples; downloads the libraries that they show
	cd examples && go vet ./... && go mod tidy -diff && go test -vet=off -timeout 10m ./...

guide: ## do what docs/guide says, from an empty folder on, in about a minute; needs psql and curl
	go test -count=1 -v -run '^TestGuide$$' ./internal/tests/guide

deploy-test: ## check the manifests for Kubernetes against the types of its API; downloads them
	cd deploy/kubernetes && go vet ./... && go mod tidy -diff && go test -vet=off -timeout 10m ./...

release-check: ## build the programs of all platforms twice and compare them, check their version, and write checksums and a bill of materials to bin/release; a quarter of an hour
	.ci/release-check

alerts: ## have each alert of deploy/prometheus fire in a running system that goes wrong, and none in one that does not, some minutes; needs promtool
	PGJET_ALERTS=1 go test -count=1 -timeout 15m -v -run '^(TestAlerts|TestAlertRules|TestDashboardsAskInPromQL)$$' ./cmd/pgjet

check: ## what needs no further download: formatting, vet, tidy go.mod, other systems
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }
	go vet ./...
	go mod tidy -diff
	GOOS=darwin go vet ./...

lint: check ## check, and golangci-lint (built from source the first time, some minutes)
	go tool -modfile=.ci/tools.mod golangci-lint run
	cd bench && go tool -modfile=../.ci/tools.mod golangci-lint run
	cd examples && go tool -modfile=../.ci/tools.mod golangci-lint run
	cd deploy/kubernetes && go tool -modfile=../../.ci/tools.mod golangci-lint run

fmt: ## format the code
	gofmt -w .
