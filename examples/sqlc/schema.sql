create table orders (id text primary key, paid boolean not null default false);
