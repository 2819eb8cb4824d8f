package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// check looks whether endpoints and files fit together: what is meant to be
// encrypted must be.
func (f *TLSFiles) check(endpoints []string) error {
	if (f.Cert == "") != (f.Key == "") {
		return errors.New("certificate and key for etcd belong together: give both, or none")
	}
	for _, e := range endpoints {
		if strings.HasPrefix(e, "http://") {
			return fmt.Errorf("etcd at %s would be spoken to without TLS: say https://, or give no certificates", e)
		}
	}
	return nil
}

// dial makes a client of an external etcd; nothing is sent yet.
func dial(cfg Config) (*clientv3.Client, *tls.Config, error) {
	c := clientv3.Config{Endpoints: cfg.Endpoints, DialTimeout: cfg.Timeout, Logger: zap.New(newLogCore(cfg.Log)),
		MaxCallSendMsgSize: 8 << 20, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second}
	if f := cfg.TLS; f != nil {
		if err := f.check(cfg.Endpoints); err != nil {
			return nil, nil, err
		}
		info := transport.TLSInfo{TrustedCAFile: f.CA, CertFile: f.Cert, KeyFile: f.Key}
		conf, err := info.ClientConfig()
		if err != nil {
			return nil, nil, fmt.Errorf("TLS for etcd: %w", err)
		}
		c.TLS = conf
	}
	client, err := clientv3.New(c)
	return client, c.TLS, err
}

// unanswered says of each endpoint why it does not answer: etcd's client knows
// only that time is up.
func unanswered(ctx context.Context, endpoints []string, conf *tls.Config, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for _, e := range endpoints {
		if why := reach(ctx, e, conf); why != nil {
			err = errors.Join(err, fmt.Errorf("etcd at %s: %w", e, why))
		}
	}
	return err
}

// reach connects to an endpoint, with TLS where the endpoint asks for it.
func reach(ctx context.Context, endpoint string, conf *tls.Config) error {
	host, encrypted := endpoint, conf != nil
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		host, encrypted = u.Host, u.Scheme == "https"
	}
	var conn net.Conn
	var err error
	if encrypted {
		conn, err = (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", host)
	} else {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", host)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if encrypted { // a refusal of this side's certificate comes with the first answer
		_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		var timeout net.Error
		if _, err := conn.Read(make([]byte, 1)); err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
			return err
		}
	}
	return nil
}
