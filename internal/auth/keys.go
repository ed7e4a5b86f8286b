package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
)

// A key verifies tokens of one algorithm.
type key struct {
	alg    jwa.SignatureAlgorithm
	public any // ed25519.PublicKey, *ecdsa.PublicKey or *rsa.PublicKey
}

// parseKeys reads a JWK, a JWK set or PEM. Its error does not quote what it read.
func parseKeys(data []byte) (jwk.Set, error) {
	pem := bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN "))
	set, err := jwk.Parse(data, jwk.WithPEM(pem))
	if err != nil || set.Len() == 0 {
		return nil, errors.New("these are no keys; want a JWK or a JWK set as JSON, or PEM with PRIVATE KEY (PKCS #8) or PUBLIC KEY")
	}
	return set, nil
}

// usableKeys returns the keys of set by their kid, and gives a kid to those without one.
// Its error says which keys cannot be used, and why.
func usableKeys(set jwk.Set) (map[string]key, error) {
	keys := make(map[string]key, set.Len())
	var unusable []error
	for n := range set.Len() {
		given, _ := set.Key(n)
		k, err := usable(given)
		if err == nil && !given.Has(jwk.KeyIDKey) {
			err = jwk.AssignKeyID(given)
		}
		kid, _ := given.KeyID()
		if _, twice := keys[kid]; err == nil && (twice || kid == "") {
			err = errors.New("its kid is empty, or that of a key before it")
		}
		if err != nil {
			unusable = append(unusable, fmt.Errorf("key %d: %w", n+1, err))
			continue
		}
		keys[kid] = k
	}
	return keys, errors.Join(unusable...)
}

func usable(given jwk.Key) (key, error) {
	if use, ok := given.KeyUsage(); ok && use != string(jwk.ForSignature) {
		return key{}, errors.New("its use is not sig")
	}
	public, err := given.PublicKey()
	if err != nil {
		return key{}, errors.New("it has no public key")
	}
	var raw any
	if err := jwk.Export(public, &raw); err != nil {
		return key{}, errors.New("it is not valid")
	}
	alg, err := algorithm(raw)
	if err != nil {
		return key{}, err
	}
	if declared, ok := given.Algorithm(); ok && declared.String() != alg.String() {
		return key{}, fmt.Errorf("it is for another algorithm than %s", alg)
	}
	return key{alg, raw}, nil
}

// algorithm returns the one algorithm for which public may be used. It refuses keys with
// which others could sign.
func algorithm(public any) (jwa.SignatureAlgorithm, error) {
	switch k := public.(type) {
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize || lowOrder(k) {
			return jwa.NoSignature(), errors.New("it is a weak Ed25519 key")
		}
		return jwa.EdDSA(), nil
	case *ecdsa.PublicKey:
		if _, err := k.ECDH(); k.Curve != elliptic.P256() || err != nil {
			return jwa.NoSignature(), errors.New("it is no point of the curve P-256")
		}
		return jwa.ES256(), nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < 2048 || bits > 8192 || k.E < 3 || k.E%2 == 0 {
			return jwa.NoSignature(), fmt.Errorf("it is an RSA key of %d bits and exponent %d; want 2048 to 8192 bits and 65537", bits, k.E)
		}
		return jwa.RS256(), nil
	}
	return jwa.NoSignature(), errors.New("it is neither Ed25519, nor P-256, nor RSA; secrets that are shared are not accepted")
}

// lowOrderPoints are the encodings of the eight points of Ed25519 whose order is so
// small that signatures can be made for them without a private key, without the
// sign in the last bit.
var lowOrderPoints = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
}

func lowOrder(k ed25519.PublicKey) bool {
	y := bytes.Clone(k)
	y[31] &= 0x7f
	for _, point := range lowOrderPoints {
		if hex.EncodeToString(y) == point {
			return true
		}
	}
	return false
}
