# One image for all services: docker build -t pgjet . ; docker run pgjet --help
#
# The cache mounts need BuildKit: Docker 23 or newer, Compose, Buildah, or DOCKER_BUILDKIT=1
# before. Without it, the build stops at the first of them and says so.
FROM golang:1.26 AS build
WORKDIR /src
RUN mkdir /state
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod \
    go mod download
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /pgjet ./cmd/pgjet

FROM gcr.io/distroless/static:nonroot
COPY --from=build /pgjet /pgjet
# A new volume that is mounted here belongs to the user below.
COPY --from=build --chown=65532:65532 /state /var/lib/pgjet
# nonroot, by number: Kubernetes' runAsNonRoot believes no name.
USER 65532:65532
ENTRYPOINT ["/pgjet"]
