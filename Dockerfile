# One image for all services: docker build -t pgjet . ; docker run pgjet --help
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /pgjet ./cmd/pgjet

FROM gcr.io/distroless/static:nonroot
COPY --from=build /pgjet /pgjet
USER nonroot
ENTRYPOINT ["/pgjet"]
